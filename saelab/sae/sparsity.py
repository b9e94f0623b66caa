"""What decides how many latents of a row fire."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Sparsity:
    """The rule of a variant, as the rest of the code must know it.

    Attributes:
        per: `row`: each row keeps k; `batch`: k a row on average; `penalty`: as many as a penalty
            of the loss lets through.
        k: None: nothing aims at a number. With a penalty, the mean that it drives at.
        signed: whether codes may be negative.
        by_magnitude: whether magnitudes are compared.
    """

    per: Literal["row", "batch", "penalty"]
    k: float | int | None
    signed: bool = False
    by_magnitude: bool = False

    @property
    def ragged(self) -> bool:
        """Whether rows of a training step may differ in their number of codes."""
        return self.per != "row"
