"""Continuing a forward pass: keys and values of earlier tokens are not computed again."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from jaxtyping import Int
from torch import Tensor

from saelab.lm.protocol import Edit, ModelOutput


@runtime_checkable
class Past(Protocol):
    """Keys and values of the tokens that each row has read."""

    def rows(self, which: Int[Tensor, " n"]) -> "Past":
        """A copy of these rows; a row may repeat."""
        ...


@runtime_checkable
class ReadsOn(Protocol):
    """A language model that can continue reading."""

    @property
    def reads_on(self) -> bool:
        """Whether `read_on` gives the logits of a whole pass; some architectures do not."""
        ...

    def read_on(
        self,
        tokens: Int[Tensor, "batch new"],
        past: Past | None,
        edits: Mapping[str, Edit] | None = None,
    ) -> tuple[ModelOutput, Past]:
        """The output for new tokens after those of `past`, and the updated past.

        Edits see and return the new tokens' activations only. `past` must not be used again.
        """
        ...
