"""The firings of some latents in order, and the operations that all evidence is made of.

Every operation sorts or searches the firings of a range of latents: no loop runs over latents, and
nothing is as large as latents times tokens.
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int, Integer, UInt32, UInt64
from numpy import ndarray


@dataclass(frozen=True)
class TextShape:
    """The shape of the text that was read.

    Attributes:
        n_contexts, length: number of contexts, and of positions in each.
        place: for every row, `context * length + position`, ascending.
    """

    n_contexts: int
    length: int
    place: UInt32[ndarray, " row"]


@dataclass(frozen=True)
class Firings:
    """All firings of the latents `first` to `first + n_latents`, by latent, then by place.

    Attributes:
        latent: latent of each firing, counted from `first`.
        row: row of the text.
        value: activation; for near misses the pre-activation.
    """

    first: int
    n_latents: int
    latent: Int[ndarray, " event"]
    row: Int[ndarray, " event"]
    value: Float32[ndarray, " event"]
    text: TextShape

    def __len__(self) -> int:
        return len(self.latent)

    def take(self, which: Integer[ndarray, " kept"]) -> "Firings":
        """Some of the firings."""
        return Firings(
            self.first, self.n_latents,
            self.latent[which], self.row[which], self.value[which], self.text,
        )  # fmt: skip

    @cached_property
    def place(self) -> Int[ndarray, " event"]:
        """The place of each firing in the text."""
        return self.text.place[self.row].astype(np.int64)

    @cached_property
    def context(self) -> Int[ndarray, " event"]:
        """The context of each firing."""
        return self.place // self.text.length

    @cached_property
    def visit(self) -> Int[ndarray, " event"]:
        """A number for each pair of latent and context, ascending."""
        return self.latent * self.text.n_contexts + self.context

    @cached_property
    def begins(self) -> Int[ndarray, " latent_plus_1"]:
        """Where each latent's firings start, and the end of the last."""
        # Searched, not counted: np.bincount would keep all other threads waiting.
        return np.searchsorted(self.latent, np.arange(self.n_latents + 1))

    @cached_property
    def counts(self) -> Int[ndarray, " latent"]:
        """The number of firings of each latent."""
        return np.diff(self.begins)

    def sums(self, number: Float[ndarray, " event"]) -> Float64[ndarray, " latent"]:
        """The sum of each latent's numbers."""
        total, fires = np.zeros(self.n_latents), self.counts > 0
        if fires.any():
            total[fires] = np.add.reduceat(number, self.begins[:-1][fires], dtype=np.float64)
        return total

    @cached_property
    def _mixed(self) -> UInt64[ndarray, " event"]:
        return _mixed_events(self.latent + self.first, self.row)

    def lots(self, seed: int, purpose: "Lot") -> UInt32[ndarray, " event"]:
        """The `chance` of each firing."""
        return _lots(self._mixed, seed, purpose)

    @cached_property
    def ascending(self) -> Float32[ndarray, " event"]:
        """The sizes |value| of each latent's firings, the smallest first."""
        # Latent and size in one number with the order of the pairs.
        size = np.abs(self.value).view(np.uint32)
        packed = np.sort(self.latent.astype(np.uint64) << np.uint64(32) | size)
        return packed.astype(np.uint32).view(np.float32)

    def reaching(self, n: int) -> Bool[ndarray, " event"]:
        """The `n` largest firings of each latent, and those of equal size."""
        if not len(self):
            return np.zeros(0, dtype=bool)
        rank = self.begins[:-1] + np.maximum(self.counts - n, 0)
        least = self.ascending[np.minimum(rank, len(self) - 1)]
        return np.abs(self.value) >= least[self.latent]


def starts(counts: Integer[ndarray, " group"]) -> Int[ndarray, " group_plus_1"]:
    """The start of each of consecutive groups, and the end of the last."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def by_group(group: Integer[ndarray, " event"], n_groups: int) -> Int[ndarray, " event"]:
    """The stable order of events by group, in linear time: a radix sort by 16 bits."""
    order = np.argsort((group & 0xFFFF).astype(np.uint16), kind="stable")
    if n_groups > 1 << 16:
        high = (group >> 16).astype(np.uint16)
        order = order[np.argsort(high[order], kind="stable")]
    return order


def first_of_each(
    group: Int[ndarray, " event"],
    preference: UInt32[ndarray, " event"],
    n_groups: int,
    n: int,
) -> Int[ndarray, "group n"]:
    """The `n` events of smallest preference in each group, best first; -1 fills missing ones."""
    key = group.astype(np.uint64) << np.uint64(32) | preference
    ends = starts(np.bincount(group, minlength=n_groups))
    # Sorting values is several times faster than ordering events: find each group's n-th smallest
    # value, then order only the events that reach it.
    last = np.minimum(ends[:-1] + n, ends[1:]) - 1
    limit = np.append(np.sort(key), np.uint64(0))[last]
    some = np.flatnonzero(key <= limit[group])
    order = some[np.argsort(key[some], kind="stable")]
    owner = group[order]
    rank = np.arange(len(order)) - starts(np.bincount(owner, minlength=n_groups))[owner]
    kept = rank < n
    out = np.full((n_groups, n), -1, dtype=np.int64)
    out[owner[kept], rank[kept]] = order[kept]
    return out


def contenders(
    group: Int[ndarray, " event"],
    size: Float32[ndarray, " event"],
    counts: Int[ndarray, " group"],
    n: int,
) -> Int[ndarray, " kept"]:
    """Of events in the order of their groups, those that may be among the group's `n` largest."""
    ends = starts(counts)
    large = np.flatnonzero(counts >= n)
    # The largest of each of n parts of a group: the least of these is a bound. Behind each group
    # follows a part without use, up to the next group.
    cuts = ends[large, None] + counts[large, None] * np.arange(n + 1) // n
    within = cuts.ravel()[cuts.ravel() < len(size)]
    peaks = np.full(cuts.size, -np.inf, np.float32)
    if len(within):
        peaks[: len(within)] = np.maximum.reduceat(size, within)
    bound = np.full(len(counts), -np.inf, np.float32)
    bound[large] = peaks.reshape(cuts.shape)[:, :n].min(axis=1)
    return np.flatnonzero(size >= bound[group])


def lowest_of_each(
    group: Int[ndarray, " event"],
    lot: UInt32[ndarray, " event"],
    counts: Int[ndarray, " group"],
    n: int,
) -> Int[ndarray, "group n"]:
    """As `first_of_each` by random numbers; only those that are low for their group are sorted.

    `counts` has the number of events of each group.
    """
    n_groups = len(counts)
    # Six standard deviations more than n are expected below it.
    share = np.minimum((n + 6 * n**0.5 + 16) / np.maximum(counts, 1), 1)
    low = lot <= (share * (2**32 - 1)).astype(np.uint32)[group]
    lacking = np.bincount(group[low], minlength=n_groups) < np.minimum(counts, n)
    if lacking.any():
        low |= lacking[group]
    kept = np.flatnonzero(low)
    return at(kept, first_of_each(group[kept], lot[kept], n_groups, n))


def at(values: Int[ndarray, " n"], indices: Int[ndarray, "*shape"]) -> Int[ndarray, "*shape"]:
    """`values[indices]`, and -1 where the index is -1."""
    return np.append(values, -1)[indices]


def largest_first(size: Float32[ndarray, " event"]) -> UInt32[ndarray, " event"]:
    """A preference for larger non-negative numbers: their bits have the same order."""
    return ~np.ascontiguousarray(size).view(np.uint32)


def best_of_visits(
    visit: Int[ndarray, " event"], size: Float[ndarray, " event"]
) -> Int[ndarray, " visit"]:
    """In each run of equal `visit`, the event of largest size; the first of equal ones."""
    if not len(visit):
        return np.zeros(0, dtype=np.int64)
    new = new_groups(visit)
    peak = np.maximum.reduceat(size, np.flatnonzero(new))
    at_peak = np.flatnonzero(size == peak[np.cumsum(new) - 1])
    return at_peak[new_groups(visit[at_peak])]


def new_groups(group: Integer[ndarray, " event"]) -> Bool[ndarray, " event"]:
    """Where a run of equal numbers begins."""
    return np.concatenate([np.ones(min(1, len(group)), bool), group[1:] != group[:-1]])


def ragged(
    start: Integer[ndarray, " group"], count: Integer[ndarray, " group"]
) -> Int[ndarray, " event"]:
    """The indices `start[i] ... start[i] + count[i] - 1` of all groups, one after the other."""
    filled = np.flatnonzero(count)
    start, count = start[filled].astype(np.int64), count[filled]
    ends = np.cumsum(count, dtype=np.int64)
    steps = np.ones(int(ends[-1]) if len(ends) else 0, dtype=np.int64)
    steps[:1] = start[:1]
    steps[ends[:-1]] = start[1:] - (start[:-1] + count[:-1]) + 1
    return np.cumsum(steps)


def owners(count: Integer[ndarray, " group"]) -> Int[ndarray, " event"]:
    """The group of each event of consecutive groups of these sizes."""
    return spread(np.arange(len(count)), count)


def spread(
    number: Integer[ndarray, " group"], count: Integer[ndarray, " group"]
) -> Integer[ndarray, " event"]:
    """Each group's number, as often as it has events.

    As np.repeat, which would keep all other threads waiting.
    """
    filled = np.flatnonzero(count)
    number, ends = number[filled], np.cumsum(count[filled], dtype=np.int64)
    steps = np.zeros(int(ends[-1]) if len(ends) else 0, dtype=number.dtype)
    steps[:1] = number[:1]
    steps[ends[:-1]] = number[1:] - number[:-1]
    return np.cumsum(steps, dtype=number.dtype)


class Lot(IntEnum):
    """Purposes of random draws; draws for different purposes are independent."""

    RANDOM = 1
    STRATA = 2
    SILENT_CONTEXT = 3
    SILENT_TOKEN = 4
    COACTIVE = 5


def chance(
    seed: int, purpose: Lot, latent: Int[ndarray, " event"], row: Int[ndarray, " event"]
) -> UInt32[ndarray, " event"]:
    """A random number for each event, from its latent and row only.

    So the draws depend neither on batches nor on interruptions. The mixing function is
    SplitMix64's.
    """
    return _lots(_mixed_events(latent, row), seed, purpose)


def _mixed_events(
    latent: Int[ndarray, " event"], row: Int[ndarray, " event"]
) -> UInt64[ndarray, " event"]:
    return _mix(latent.astype(np.uint64) << np.uint64(40) ^ row.astype(np.uint64))


def _lots(mixed: UInt64[ndarray, " event"], seed: int, purpose: Lot) -> UInt32[ndarray, " event"]:
    key = _mix(np.array([(seed * 0x9E3779B97F4A7C15 + purpose) % 2**64], dtype=np.uint64))
    lots = _mix(mixed ^ key)
    lots >>= np.uint64(32)
    return lots.astype(np.uint32)


def _mix(x: UInt64[ndarray, " n"]) -> UInt64[ndarray, " n"]:
    """SplitMix64's mixing function, in place."""
    x += np.uint64(0x9E3779B97F4A7C15)
    shifted = x >> np.uint64(30)
    x ^= shifted
    x *= np.uint64(0xBF58476D1CE4E5B9)
    np.right_shift(x, np.uint64(27), out=shifted)
    x ^= shifted
    x *= np.uint64(0x94D049BB133111EB)
    np.right_shift(x, np.uint64(31), out=shifted)
    x ^= shifted
    return x
