"""SAEs that select latents by a number for each of them."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from saelab.types import SparseCodes


@runtime_checkable
class Preselecting(Protocol):
    """An SAE that selects by a number for every latent."""

    def pre_activations(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """The numbers that it selects by."""
        ...


@runtime_checkable
class SelectingByThese(Preselecting, Protocol):
    """An SAE whose codes follow from these numbers alone."""

    def codes_from(self, pre_acts: Float[Tensor, "batch d_sae"]) -> SparseCodes:
        """The codes that `encode` makes of rows with these pre-activations."""
        ...
