"""Ternary sparse coding: a latent is off, or on with either sign (arXiv 1908.06843)."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from saelab.pursuit.evidence import fixed_evidence
from saelab.pursuit.truncation import Evidence
from saelab.sae.em import ExpectationMaximisation
from saelab.sae.truncated import LEAST_PI, AbstractTruncatedSAE, TruncatedConfig


class TSCConfig(TruncatedConfig):
    """TSC: latents off, or on with either sign; truncated expectation maximisation (1908.06843)."""

    variant: Literal["tsc"] = "tsc"

    signs: ClassVar[tuple[int, ...]] = (1, -1)
    signed_codes: ClassVar[bool] = True

    @override
    def build(self, d_in: int, generator: torch.Generator | None = None) -> "TSC":
        return TSC(self, d_in, generator)


class TSC(AbstractTruncatedSAE[TSCConfig]):
    """x = b_dec + sum_h s_h size_h w_h + noise with s_h in {-1, 0, 1}, and one pi for all.

    The signs are equally likely. The candidates of a row explain it best if alone.
    """

    in_units = ("size",)

    def __init__(
        self, config: TSCConfig, d_in: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config, d_in, generator)
        self.pi = nn.Parameter(torch.tensor(0.5))
        self.size = nn.Parameter(torch.ones(config.d_sae))

    @override
    def own_step(self) -> ExpectationMaximisation:
        return ExpectationMaximisation(self)

    @override
    def scales(self) -> Float[Tensor, " d_sae"]:
        return self.size.detach()

    @override
    def evidence(self, x: Float[Tensor, "batch d_in"]) -> Evidence:
        return fixed_evidence(
            x - self.b_dec,
            self.W_dec,
            self.size,
            self.sigma.square(),
            self.states,
            by_cosine=False,
        )

    @override
    def take_norms(self, norms: Float[Tensor, " d_sae"]) -> None:
        self.size.copy_(norms)

    @override
    def take_moments(
        self,
        on: Float[Tensor, " d_sae"],
        mean: Float[Tensor, " d_sae"],
        square: Float[Tensor, " d_sae"],
    ) -> None:
        self.pi.copy_(on.mean().clamp(LEAST_PI, 1 - LEAST_PI))

    @override
    def start_values(self, norms: Float[Tensor, " d_sae"]) -> None:
        self.size.copy_(norms)
