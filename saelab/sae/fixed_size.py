"""Probabilistic sparse coding where a latent that is on always has the same size (1908.06843)."""

import abc

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import TypeVar, override

from saelab.pursuit.evidence import fixed_evidence
from saelab.pursuit.truncation import Evidence
from saelab.sae.em import ExpectationMaximisation
from saelab.sae.truncated import LEAST_PI, AbstractTruncatedSAE, TruncatedConfig

ConfigT = TypeVar("ConfigT", bound=TruncatedConfig, covariant=True, default=TruncatedConfig)


class AbstractFixedSizeSAE(AbstractTruncatedSAE[ConfigT], abc.ABC):
    """x = b_dec + sum_h s_h size_h w_h + noise, with one pi for all latents.

    The options say which signs s_h may have; they are equally likely.
    """

    in_units = ("size",)

    @property
    @abc.abstractmethod
    def by_cosine(self) -> bool:
        """Whether a row's candidates have the largest cosine with it, or explain it best alone."""

    def __init__(
        self, config: ConfigT, d_in: int, generator: torch.Generator | None = None
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
            by_cosine=self.by_cosine,
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
