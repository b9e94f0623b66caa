"""Gaussian sparse coding, spike and slab: a latent is off, or on with a normal value (1908.06843).

The truncated expectation maximisation is that of Sheikh, Shelton and Luecke (JMLR 15, 2014). Two
things differ from the authors' code. The slabs are independent: their covariance Psi is diagonal,
d_sae numbers instead of d_sae^2. And sigma^2 takes E[z z^T], as the free energy asks, not E[z]
E[z]^T. Atoms have unit norm here, which changes nothing: the slab takes over what the norm was.
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from saelab.pursuit.evidence import normal_evidence
from saelab.pursuit.truncation import Evidence
from saelab.sae.affine import LinearCodes
from saelab.sae.em import ExpectationMaximisation
from saelab.sae.truncated import LEAST_PI, AbstractTruncatedSAE, TruncatedConfig
from saelab.types import SparseCodes

LEAST_SPREAD = 1e-3
"""Smallest standard deviation of a slab, in those of the noise."""
SEEN = 1e-12
"""A latent that was on in a smaller share of the rows keeps its slab."""


class GSCConfig(TruncatedConfig):
    """GSC, spike and slab: on with a normal value; truncated EM (arXiv 1908.06843).

    No gradient fits it, so options of Adam and --budget are refused.

        saelab train gsc --activations activations_cache/tiny --site blocks.2.hook_resid_post
            --d-sae 1024 --n-tokens 4000000 --out runs/gsc
    """

    variant: Literal["gsc"] = "gsc"

    signs: ClassVar[tuple[int, ...]] = (1,)
    signed_codes: ClassVar[bool] = True

    @override
    def build(self, d_in: int, generator: torch.Generator | None = None) -> "GSC":
        return GSC(self, d_in, generator)


class GSC(AbstractTruncatedSAE[GSCConfig]):
    """x = b_dec + sum_h s_h z_h w_h + noise with z_h ~ N(mu_h, spread_h^2), s_h ~ Bernoulli(pi_h).

    The candidates of a row explain it best if alone.
    """

    in_units = ("mu", "spread")

    def __init__(
        self, config: GSCConfig, d_in: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config, d_in, generator)
        self.pi = nn.Parameter(torch.full((config.d_sae,), 0.5))
        self.mu = nn.Parameter(torch.ones(config.d_sae))
        self.spread = nn.Parameter(torch.ones(config.d_sae))

    @override
    def own_step(self) -> ExpectationMaximisation:
        return ExpectationMaximisation(self)

    @override
    def scales(self) -> Float[Tensor, " d_sae"]:
        return torch.ones_like(self.mu, requires_grad=False)

    @override
    def evidence(self, x: Float[Tensor, "batch d_in"]) -> Evidence:
        variance = self.sigma.square()
        return normal_evidence(
            x - self.b_dec, self.W_dec, self.mu, self.spread, variance, self.states
        )

    @override
    def linear_codes(self, x: Float[Tensor, "batch d_in"], codes: SparseCodes) -> LinearCodes:
        # With the state fixed z = mu + L^-1 A (x - b_dec - mu A) / variance, see normal_evidence.
        on = codes.active
        names = ("W_dec", "mu", "spread", "b_dec", "sigma")
        W_dec, mu, spread, b_dec, sigma = (getattr(self, name).to(x.dtype) for name in names)
        atoms = W_dec[codes.indices] * on[..., None]
        gram = atoms @ atoms.transpose(1, 2) / sigma.square()
        precision = torch.where(on, spread[codes.indices].square().reciprocal(), 1.0)
        chosen = mu[codes.indices] * on
        encoder = torch.linalg.solve(gram + torch.diag_embed(precision), atoms / sigma.square())
        modelled = b_dec + (chosen[:, None] @ atoms).squeeze(1)
        constant = chosen - (encoder @ modelled[..., None]).squeeze(-1)
        order = (codes.rows() * self.d_sae + codes.indices)[on].argsort()
        row, latent = codes.rows()[on][order], codes.indices[on][order]
        encoder, constant = encoder[on][order], constant[on][order]
        values = (encoder * x[row]).sum(-1) + constant
        return LinearCodes(row, latent, values, encoder, constant)

    @override
    def take_norms(self, norms: Float[Tensor, " d_sae"]) -> None:
        self.mu.mul_(norms)
        self.spread.mul_(norms)

    @override
    def take_moments(
        self,
        on: Float[Tensor, " d_sae"],
        mean: Float[Tensor, " d_sae"],
        square: Float[Tensor, " d_sae"],
    ) -> None:
        self.pi.copy_(on.clamp(LEAST_PI, 1 - LEAST_PI))
        seen = on > SEEN
        mu = mean / on
        spread = (square / on - mu.square()).clamp_min(0).sqrt()
        self.mu.copy_(torch.where(seen, mu, self.mu))
        least = LEAST_SPREAD * self.sigma
        self.spread.copy_(torch.where(seen, spread, self.spread).clamp_min(least))

    @override
    def start_values(self, norms: Float[Tensor, " d_sae"]) -> None:
        self.mu.copy_(norms)
        self.spread.copy_(norms)
