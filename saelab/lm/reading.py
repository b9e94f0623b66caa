"""Continuing a forward pass: keys and values of earlier tokens are not computed again."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from saelab.lm.protocol import Edit, LanguageModel, ModelOutput

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""In standard deviations of the logits: above rounding, below the effect of a forgotten token."""
HALF_PRECISION_TOLERANCE = 0.1


@runtime_checkable
class Past(Protocol):
    """Keys and values of the tokens that each row has read."""

    @property
    def whole(self) -> bool:
        """Whether these are the keys and values of all tokens, and nothing else."""
        ...

    def rows(self, which: Int[Tensor, " n"]) -> "Past":
        """A copy of these rows; a row may repeat."""
        ...


@runtime_checkable
class ReadsOn(LanguageModel, Protocol):
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


def continues(lm: ReadsOn) -> bool:
    """Whether `read_on` gives the logits of a whole pass, tested on five tokens.

    Some architectures keep something else than keys and values, or keep them elsewhere.
    """
    tokens = torch.arange(5, device=lm.device)[None] % lm.info.d_vocab
    try:
        _, past = lm.read_on(tokens[:, :3], None)
    except TypeError:
        # The model's forward pass takes no cache.
        return False
    if not past.whole:
        return False
    found, whole = lm.read_on(tokens[:, 3:], past)[0].logits, lm.logits(tokens)[:, 3:]
    tolerance = TOLERANCE.get(whole.dtype, HALF_PRECISION_TOLERANCE)
    return bool((found - whole).abs().max() < tolerance * whole.std())
