"""Reading on where a model stopped: what it keeps of the tokens so far is not computed again."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from jaxtyping import Int
from torch import Tensor

from saelab.lm.protocol import Edit, ModelOutput


@runtime_checkable
class Past(Protocol):
    """Keys and values of the tokens that each row has read."""

    def rows(self, which: Int[Tensor, " n"]) -> "Past":
        """A copy of these rows, which may repeat."""
        ...


@runtime_checkable
class ReadsOn(Protocol):
    """A language model that can continue reading."""

    @property
    def reads_on(self) -> bool:
        """Whether `read_on` gives the logits of a whole pass; not for every architecture."""
        ...

    def read_on(
        self,
        tokens: Int[Tensor, "batch new"],
        past: Past | None,
        edits: Mapping[str, Edit] | None = None,
    ) -> tuple[ModelOutput, Past]:
        """What is said of new tokens behind those of `past`, and what is kept now.

        Edits get and give the new tokens' activations only. `past` is used up.
        """
        ...
