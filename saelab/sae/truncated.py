"""Probabilistic sparse coding: a model of the rows with latents that are on or off (1908.06843).

x = b_dec + sum_h s_h z_h w_h + noise, noise ~ N(0, sigma^2 I), s_h ~ Bernoulli(pi_h); what z_h may
be is the variant's. Training is expectation maximisation (`saelab.sae.em`). The codes of a row are
those of its most probable state, among the states of expectation truncation
(`saelab.pursuit.truncation`), each with the mean of its value given that state. Atoms have unit
norm, so codes are in the activations' units; the papers write the norm into the atoms instead.
"""

import abc
import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import TypeVar, override

from saelab.config import UsageError
from saelab.pursuit.truncation import Evidence, States, n_states
from saelab.sae.base import AbstractSAE, AbstractSAEConfig
from saelab.sae.checks import check_rows
from saelab.sae.context import LossContext
from saelab.sae.dictionary import normalise_rows, random_unit_rows
from saelab.sae.losses import squared_error
from saelab.sae.own_step import OwnStep
from saelab.sae.sparsity import Sparsity
from saelab.types import ActivationBatch, SparseCodes, TrainingPass

MOST_STATES = 2048
"""Most states of several latents; each row evaluates all of them."""
CHUNK_BYTES = {"cpu": 2**26, "cuda": 2**30}
"""Memory for the states of the rows that are evaluated together; more is not faster on a CPU."""
LEAST_PI = 1e-5
"""Prior probabilities stay this far from 0 and 1, as in the authors' code."""


class TruncatedConfig(AbstractSAEConfig, abc.ABC):
    """Options of a variant that truncated expectation maximisation fits."""

    candidates: int = Field(default=8, gt=0)
    """Latents of a row, chosen before the others are left out, that may be on together (the papers'
    H'). The cost grows with the number of states: all sets of up to max_active candidates."""
    max_active: int = Field(default=4, gt=0)
    """Most latents that are on in a row (the papers' gamma). How many are, the data decide."""
    learn_bias: bool = True
    """Whether b_dec is learned; otherwise it is 0, as in the papers."""
    temperature: float = Field(default=1.0, ge=1)
    """Annealing: posteriors start at this temperature and cool linearly to 1 (the default: none).
    The authors' bars tests start at 2 to 5. Where noise is not small against the atoms, this
    shrinks all atoms to nothing, and nothing is learned."""
    cooling: float = Field(default=0.7, gt=0, le=1)
    """Share of the run after which the temperature is 1 and the noise on the atoms is gone."""
    anneal_prior: bool = False
    """Whether the temperature also flattens the prior, not only the likelihood."""
    atom_noise: float = Field(default=0.0, ge=0)
    """Noise on the atoms' entries at the first step, in standard deviations of the model's noise;
    it falls linearly to 0."""
    forgetting: float = Field(default=0.6, ge=0, le=1)
    """Step t takes the share t^-forgetting of its statistics from its own batch and the rest from
    the batches before. 0: from its own batch alone, which is exact expectation maximisation if
    every batch is the whole store."""

    signs: ClassVar[tuple[int, ...]]
    """The signs that a latent which is on may have."""
    signed_codes: ClassVar[bool]
    """Whether codes may be negative."""

    @property
    @override
    def fitted_by(self) -> str | None:
        return "expectation maximisation"

    @property
    @override
    def sparsity(self) -> Sparsity:
        return Sparsity("row", None, signed=self.signed_codes)

    @property
    @override
    def transcoder_problem(self) -> str | None:
        return "it models the rows that it reads"

    @override
    def check(self) -> None:
        if self.candidates > self.d_sae:
            raise UsageError(
                f"candidates={self.candidates} exceeds d_sae={self.d_sae}; lower --candidates or "
                "widen the SAE with --d-sae."
            )
        if self.max_active > self.candidates:
            raise UsageError(
                f"max_active={self.max_active} exceeds candidates={self.candidates}; lower "
                "--max-active or raise --candidates."
            )
        found = n_states(self.candidates, self.max_active, len(self.signs))
        if found > MOST_STATES:
            raise UsageError(
                f"candidates={self.candidates} and max_active={self.max_active} make {found:,} "
                f"states a row, and {MOST_STATES:,} is the most; lower either."
            )

    def at(self, context: LossContext) -> tuple[float, float]:
        """The temperature and the noise on the atoms at a step."""
        left = max(0.0, 1 - context.progress / self.cooling)
        return 1 + left * (self.temperature - 1), left * self.atom_noise

    @override
    def own_step_bytes(self, d_in: int, device: torch.device) -> int:
        # Statistics, the matrix of the M-step and its factor, in float64.
        square = 8 * (self.d_sae + 1) ** 2
        return 3 * square + 3 * 8 * self.d_sae * d_in + _chunk_bytes(device)

    @abc.abstractmethod
    @override
    def build(
        self, d_in: int, generator: torch.Generator | None = None
    ) -> "AbstractTruncatedSAE": ...


TruncatedConfigT = TypeVar(
    "TruncatedConfigT", bound=TruncatedConfig, covariant=True, default=TruncatedConfig
)


class AbstractTruncatedSAE(AbstractSAE[TruncatedConfigT]):
    """The parts that the models share: rows, states, codes.

    Attributes:
        sigma: standard deviation of the noise in each dimension.
        pi: probability that a latent is on: one number, or one for each latent.
    """

    unit_atoms = True
    in_units: ClassVar[tuple[str, ...]]
    """The variant's parameters in the units of the codes."""
    sigma: nn.Parameter
    pi: nn.Parameter

    def __init__(
        self, config: TruncatedConfigT, d_in: int, generator: torch.Generator | None
    ) -> None:
        config.check()
        super().__init__()
        self.config = config
        self.W_dec = nn.Parameter(random_unit_rows(config.d_sae, d_in, generator))
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        self.sigma = nn.Parameter(torch.ones(()))
        self._states: States | None = None

    @abc.abstractmethod
    def scales(self) -> Float[Tensor, " d_sae"]:
        """What a latent's value in the model is multiplied with to give its code."""

    @abc.abstractmethod
    def evidence(self, x: Float[Tensor, "batch d_in"]) -> Evidence:
        """How well the states explain rows; call it on `chunks`."""

    @abc.abstractmethod
    def take_norms(self, norms: Float[Tensor, " d_sae"]) -> None:
        """Give codes the units in which the model's atoms, of these norms, are unit vectors."""

    @abc.abstractmethod
    def take_moments(
        self,
        on: Float[Tensor, " d_sae"],
        mean: Float[Tensor, " d_sae"],
        square: Float[Tensor, " d_sae"],
    ) -> None:
        """Set the prior and the values' parameters from P(on), E[z] and E[z^2], means over rows."""

    @property
    def states(self) -> States:
        """The states with several latents on."""
        like = self.W_dec
        if self._states is None or self._states.signs.to(like) is not self._states.signs:
            given = self.config
            self._states = States.of(
                given.candidates, given.max_active, given.signs, self.W_dec.detach()
            )
        return self._states

    def chunks(self, x: Float[Tensor, "batch d_in"]) -> Iterator[Float[Tensor, "rows d_in"]]:
        """The rows, as many together as fit in CHUNK_BYTES."""
        given, slots = self.config, self.config.max_active
        one = 8 * len(given.signs) * given.d_sae
        several = len(self.states) * (6 + 4 * slots * (1 + slots))
        among = given.candidates * (2 * self.d_in + 4 * given.candidates)
        size = _chunk_bytes(x.device) // (x.element_size() * (one + several + among))
        yield from x.split(max(1, size))

    def log_odds(self) -> Float[Tensor, " d_sae"]:
        """Log odds of every latent to be on, log(pi / (1 - pi))."""
        return self.pi.detach().logit().expand(self.d_sae)

    def log_nothing(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, " batch"]:
        """Log of p(x, no latent on), in nats."""
        variance = self.sigma.detach().square()
        off = torch.log1p(-self.pi.detach()).expand(self.d_sae).sum()
        noise = (x - self.b_dec).square().sum(1) / variance
        return off - 0.5 * (noise + self.d_in * (2 * math.pi * variance).log())

    def best_codes(self, evidence: Evidence, log_joint: Float[Tensor, "batch all"]) -> SparseCodes:
        """The codes of the most probable states."""
        found = evidence.best(log_joint)
        values = found.values * self.scales()[found.indices]
        return SparseCodes(values, found.indices, self.d_sae)

    @override
    def encode(self, x: Float[Tensor, "batch d_in"]) -> SparseCodes:
        check_rows(x, self.d_in)
        parts, log_odds = [], self.log_odds()
        for rows in self.chunks(x):
            evidence = self.evidence(rows)
            log_joint = evidence.log_prior(log_odds) + evidence.log_likelihood()
            parts.append(self.best_codes(evidence, log_joint))
        values, indices = (torch.cat([getattr(p, n) for p in parts]) for n in ("values", "indices"))
        return SparseCodes(values, indices, self.d_sae)

    @override
    def training_pass(self, batch: ActivationBatch, context: LossContext) -> TrainingPass:
        codes = self.encode(batch.x)
        x_hat = self.decode(codes)
        return TrainingPass(codes, x_hat, squared_error(batch.wanted, x_hat))

    @abc.abstractmethod
    @override
    def own_step(self) -> OwnStep: ...

    @override
    def fused_rule(self) -> str:
        return "it is fitted by expectation maximisation, and kernels follow a gradient"

    @override
    @torch.no_grad()
    def initialise(self, rows: Float[Tensor, "n d_in"]) -> None:
        """As the authors' code: atoms are the rows' mean and noise, a quarter of the rows' spread.

        The mean is that of what b_dec leaves, which is none if b_dec is learned.
        """
        mean, spread = rows.mean(0), rows.std(0, correction=0).mean()
        self.sigma.copy_(spread)
        self.pi.fill_(1 / self.d_sae if self.d_sae > 1 else 0.5)
        size = self.d_in**0.5 * spread / 4
        if self.config.learn_bias:
            self.b_dec.copy_(mean)
            self.start_values(size.expand(self.d_sae))
        else:
            self.W_dec.mul_(size).add_(mean)
            self.start_values(self.W_dec.norm(dim=1))
            normalise_rows(self.W_dec)

    @abc.abstractmethod
    def start_values(self, norms: Float[Tensor, " d_sae"]) -> None:
        """Set the values' parameters before the first step; `norms` are those of the atoms."""

    @override
    @torch.no_grad()
    def restore_norms(self) -> None:
        norms = self.W_dec.norm(dim=1)
        normalise_rows(self.W_dec)
        for name in self.in_units:
            self.get_parameter(name).mul_(norms)

    @override
    @torch.no_grad()
    def rescale(self, scale: float, target_scale: float | None = None) -> None:
        for value in (self.b_dec, self.sigma, *map(self.get_parameter, self.in_units)):
            value.div_(scale)


def _chunk_bytes(device: torch.device) -> int:
    return CHUNK_BYTES.get(device.type, CHUNK_BYTES["cpu"])
