"""What decides how many latents fire in a row."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Sparsity:
    """A variant's sparsity rule.

    Attributes:
        per: `row`: each row keeps k latents; `batch`: k per row on average; `penalty`: a penalty in
            the loss decides.
        k: number of active latents per row; with a penalty, its target mean. None: no number is
            set.
        signed: whether codes may be negative.
        by_magnitude: whether latents are compared by magnitude.
    """

    per: Literal["row", "batch", "penalty"]
    k: float | int | None
    signed: bool = False
    by_magnitude: bool = False

    @property
    def ragged(self) -> bool:
        """Whether rows of a training step may have different numbers of codes."""
        return self.per != "row"
