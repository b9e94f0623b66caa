"""A training step that a variant does itself, where no gradient is followed."""

from typing import Protocol, runtime_checkable

from torch import Tensor

from saelab.sae.context import LossContext
from saelab.types import ActivationBatch, LossTerms


@runtime_checkable
class OwnStep(Protocol):
    """What changes a variant's weights in place of a gradient and an optimizer.

    It belongs to one SAE on one device, and keeps what it must remember between steps.
    """

    def __call__(self, batch: ActivationBatch, context: LossContext) -> LossTerms:
        """Change the SAE by one step; returns its figures before the change, without a graph."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """What the step remembers, by name; the SAE's own tensors are not among it."""
        ...

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Continue from these `tensors`."""
        ...
