"""Short sequences side by side in one context: packed for storing, separated for running.

A context is a row of the table of tokens. It holds one sequence with `PADDING` after its end, or
several with one `PADDING` between them. A model always reads single sequences, each from position 0
with its own BOS, so it never sees neighbouring sequences.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int, Integer
from numpy import ndarray

from saelab.activations.windows import PADDING


@dataclass(frozen=True)
class Sequences:
    """The sequences of some contexts, in reading order.

    Attributes:
        contexts: the table of tokens.
        start: start of each sequence in the flattened table.
        length: tokens of each.
    """

    contexts: Integer[ndarray, "context pos"]
    start: Int[ndarray, " sequence"]
    length: Int[ndarray, " sequence"]

    @classmethod
    def of(cls, contexts: Integer[ndarray, "context pos"]) -> "Sequences":
        """The sequences in these contexts, which padding and the ends of contexts separate."""
        real = contexts != PADDING
        first, last = real.copy(), real.copy()
        first[:, 1:] &= ~real[:, :-1]
        last[:, :-1] &= ~real[:, 1:]
        start = np.flatnonzero(first)
        return cls(contexts, start, np.flatnonzero(last) + 1 - start)

    def __len__(self) -> int:
        return len(self.start)

    @property
    def side_by_side(self) -> bool:
        """Whether a context holds more than one sequence."""
        return bool((self.start % self.contexts.shape[1]).any())

    def padded(
        self, chosen: Int[ndarray, " n"] | slice = slice(None)
    ) -> tuple[Integer[ndarray, "n pos"], Int[ndarray, "n pos"]]:
        """The sequences padded to the longest, and each token's index in the flattened table.

        After a sequence's end, tokens are `PADDING` and indices -1.
        """
        start, length = self.start[chosen], self.length[chosen]
        step = np.arange(int(length.max(initial=0)))
        place = np.where(step < length[:, None], start[:, None] + step, -1)
        return np.where(place < 0, PADDING, self.contexts.ravel()[place]), place

    def batches(self, positions: int) -> Iterator[Int[ndarray, " n"]]:
        """All sequences in batches of similar length, the longest first, to run little padding.

        A batch has at most this many positions, or one sequence.
        """
        order = np.argsort(-self.length, kind="stable")
        done = 0
        while done < len(order):
            n = max(1, positions // int(self.length[order[done]]))
            yield order[done : done + n]
            done += n

    @cached_property
    def position(self) -> Int[ndarray, "context pos"]:
        """Each token's position in its own sequence, -1 at padding."""
        out = np.full(self.contexts.size, -1, dtype=np.int64)
        inside = np.arange(int(self.length.sum())) - np.repeat(
            np.cumsum(self.length) - self.length, self.length
        )
        out[np.repeat(self.start, self.length) + inside] = inside
        return out.reshape(self.contexts.shape)


def lay(
    length: Integer[ndarray, " sequence"], room: int
) -> tuple[Int[ndarray, " sequence"], Int[ndarray, " sequence"]]:
    """The context and the first position of each sequence when they are packed in order.

    A sequence follows the one before if it fits with one padding between them; else it starts the
    next context. `room` is the length of a context.
    """
    ends = np.cumsum(length + 1, dtype=np.int64)
    firsts = [0]
    while firsts[-1] < len(ends):
        before = ends[firsts[-1] - 1] if firsts[-1] else 0
        firsts.append(int(np.searchsorted(ends, before + room + 1, side="right")))
    context = np.repeat(np.arange(len(firsts) - 1), np.diff(firsts))
    begin = ends - length - 1
    return context, begin - begin[np.asarray(firsts, dtype=np.int64)[context]]
