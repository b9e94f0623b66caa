"""aux_zipf: AuxK for latents that fire too seldom for their rank, not only for dead ones.

It generalises AuxK (arXiv 2411.02124). The formula here is inferred, since the paper's own was not
at hand and its code is not public: a latent is under-used if its density, averaged over recent
tokens, is below a share of what Zipf-Mandelbrot's law gives its rank, and of the mean density. AuxK
then treats dead and under-used latents alike, where they are silent in the whole batch: together
they model what the others miss.
"""

import abc
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor
from typing_extensions import TypeVar, override

from saelab.kernels.rules import FusedRule, UsageRules
from saelab.kernels.torch.zipf import LOOK_EVERY, Usage, expected_density, zipf_shares
from saelab.pursuit.select import Rule
from saelab.sae.aux_k import AuxKConfig
from saelab.sae.base import AbstractSAE
from saelab.sae.batch_selection import CHUNK, AbstractBatchSelectionSAE
from saelab.sae.checks import check_k
from saelab.sae.context import LossContext
from saelab.sae.sparsity import Sparsity
from saelab.types import ActivationBatch, SparseCodes, TrainingPass

FIRINGS = 20
"""How often the rarest latent should fire in the tokens over which density is averaged."""


class ZipfConfig(AuxKConfig, abc.ABC):
    """Options of a variant whose latents should fire as often as Zipf-Mandelbrot's law says."""

    k: float | int = Field(default=32, gt=0)
    """Latents active per token on average; may be a fraction."""
    zipf_exponent: float = Field(default=1.0, ge=0)
    """s in the density of the latent of rank r, which is proportional to (r + shift)^-s. Default:
    Mandelbrot's for English words, since the paper's fit (2411.02124) is not public; 0 makes all
    latents equally frequent."""
    zipf_shift: float = Field(default=2.7, ge=0)
    """The shift in the same law; origin as of the exponent."""
    aux_zipf: float = Field(default=0.5, ge=0, lt=1)
    """AuxK also revives latents below this share of their rank's density (a choice of saelab); 0:
    only dead ones."""
    density_window: int | None = Field(default=None, gt=0)
    """Tokens over which density is averaged; default: the rarest latent should fire 20 times."""

    @property
    @override
    def sparsity(self) -> Sparsity:
        return Sparsity("batch", self.k)

    @override
    def check(self) -> None:
        check_k(self.k, self.d_sae)

    def usage_rules(self) -> UsageRules:
        """The law, and how densities are averaged."""
        rarest = float(zipf_shares(self.d_sae, self.zipf_exponent, self.zipf_shift)[-1])
        window = self.density_window or max(1, round(FIRINGS / (self.k * rarest)))
        return UsageRules(self.k, self.zipf_exponent, self.zipf_shift, self.aux_zipf, window)


ZipfConfigT = TypeVar("ZipfConfigT", bound=ZipfConfig, covariant=True, default=ZipfConfig)


class AbstractZipfSAE(AbstractBatchSelectionSAE[ZipfConfigT], abc.ABC):
    """Training counts how often each latent fires, and revives those that fire too seldom.

    Attributes:
        density: `[d_sae]`, the share of recent rows in which each latent fired; at first what the
            law gives its index.
        underused: `[d_sae]`, which latents AuxK revives besides dead ones; found every 16 steps.
        n_observed: steps that were observed.
    """

    density: Tensor
    underused: Tensor
    n_observed: Tensor

    def __init__(
        self, config: ZipfConfigT, d_in: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(d_in, config.d_sae, config.k, generator)
        self.config = config
        self.register_buffer("density", torch.empty(config.d_sae))
        self.register_buffer("underused", torch.zeros(config.d_sae, dtype=torch.bool))
        self.register_buffer("n_observed", torch.zeros((), dtype=torch.int64))
        # Nothing is known of the latents yet, so ranks go by index and none is under-used.
        self.density.copy_(expected_density(config.d_sae, config.usage_rules()))

    @property
    def usage(self) -> Usage:
        """How often latents fire, and how often they should."""
        return Usage(self.config.usage_rules(), self.density, self.underused)

    @override
    def selected_pass(
        self,
        batch: ActivationBatch,
        pre_acts: Float[Tensor, "batch d_sae"],
        codes: SparseCodes,
        context: LossContext,
        rule: Rule,
    ) -> TrainingPass:
        revived = replace(context, dead=self._revived(context.dead))
        return super().selected_pass(batch, pre_acts, codes, revived, rule)

    def _revived(self, dead: Bool[Tensor, " d_sae"] | None) -> Bool[Tensor, " d_sae"] | None:
        """Dead and under-used latents; None if there are none."""
        if dead is not None:
            return self.underused | dead
        return self.underused if bool(self.underused.any()) else None

    @override
    @torch.no_grad()
    def observe(self, codes: SparseCodes) -> None:
        super().observe(codes)
        self.usage.follow_(codes.values, codes.indices, len(codes))
        self.n_observed += 1
        if int(self.n_observed) % LOOK_EVERY == 0:
            self.usage.mark_()

    @override
    @torch.no_grad()
    def take_threshold(self, source: AbstractSAE, rows: Float[Tensor, "n d_in"]) -> None:
        super().take_threshold(source, rows)
        known = source.state_dict().get("density")
        if known is None:
            counts = [source.encode(part).firing_counts() for part in rows.split(CHUNK)]
            known = torch.stack(counts).sum(0) / len(rows)
        self.density.copy_(known)
        self.usage.mark_()

    @override
    def fused_rule(self) -> FusedRule:
        return replace(self._batch_rule(), usage=self.config.usage_rules())
