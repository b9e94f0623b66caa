"""The choice of firings, near misses and silent contexts as examples of each latent."""

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt64
from numpy import ndarray

from saelab.analysis.features.firings import (
    Firings,
    Lot,
    at,
    best_of_visits,
    chance,
    first_of_each,
    largest_first,
    lowest_of_each,
    new_groups,
    ragged,
    spread,
    starts,
)
from saelab.analysis.features.options import FeatureOptions
from saelab.analysis.features.statistics import Strata

LARGEST_HALF = 65504.0
TRIED = 4
"""The largest examples are looked for among this many times as many firings first."""


def examples(firings: Firings, strata: Strata, options: FeatureOptions) -> dict[str, ndarray]:
    """The kinds top, negative, strata and random."""
    chosen = {
        "top": extreme(firings, 1, options.n_examples),
        "negative": extreme(firings, -1, options.n_examples),
        "strata": from_strata(firings, strata, options),
        "random": at_random(firings, options),
    }
    arrays: dict[str, ndarray] = {}
    for kind, events in chosen.items():
        arrays |= {f"{kind}/{name}": v for name, v in placed(firings, events).items()}
        windows = windows_around(firings, events[events >= 0], options.reach)
        count = np.zeros(events.shape, dtype=np.int64)
        count[events >= 0] = windows["count"]
        arrays |= {f"{kind}/window_{n}": v for n, v in {**windows, "count": count}.items()}
    return arrays


def extreme(firings: Firings, sign: int, n: int) -> Int[ndarray, "latent n"]:
    """The largest firings of one sign, at most one per context."""
    side = firings.value * sign > 0
    found = _peaks(firings, side & firings.reaching(TRIED * n), n)
    # More of a latent's firings matter where the largest are in few contexts or of the other sign.
    lacking = (found[:, -1] < 0) & (firings.counts > TRIED * n)
    if lacking.any():
        found[lacking] = _peaks(firings, side & lacking[firings.latent], n)[lacking]
    return found


def _peaks(firings: Firings, among: Bool[ndarray, " event"], n: int) -> Int[ndarray, "latent n"]:
    """The largest of these firings, at most one per context."""
    chosen = np.flatnonzero(among)
    some = firings.take(chosen)
    size = np.abs(some.value)
    best = best_of_visits(some.visit, size)
    found = first_of_each(some.latent[best], largest_first(size[best]), some.n_latents, n)
    return at(at(chosen, best), found)


def at_random(firings: Firings, options: FeatureOptions) -> Int[ndarray, "latent n"]:
    """A fair sample of all firings, without replacement."""
    lots = firings.lots(options.seed, Lot.RANDOM)
    return lowest_of_each(firings.latent, lots, firings.counts, options.n_examples)


def from_strata(
    firings: Firings, strata: Strata, options: FeatureOptions
) -> Int[ndarray, "latent n"]:
    """A fair sample of every stratum; the lowest stratum's slots come first."""
    lots = firings.lots(options.seed, Lot.STRATA)
    population = strata.population.ravel()
    found = lowest_of_each(strata.group, lots, population, options.n_per_stratum)
    return found.reshape(firings.n_latents, -1)


def placed(firings: Firings, events: Int[ndarray, "latent n"]) -> dict[str, ndarray]:
    """Context, position and value of the chosen events."""
    there = events >= 0
    at = np.where(there, events, 0)
    if not len(firings):
        zeros = np.zeros(events.shape, dtype=np.int64)
        return {"context": events, "position": zeros, "value": zeros.astype(np.float32)}
    place = firings.place[at]
    return {
        "context": np.where(there, place // firings.text.length, -1),
        "position": np.where(there, place % firings.text.length, 0),
        "value": np.where(there, firings.value[at], np.float32(0)),
    }


def windows_around(
    firings: Firings, events: Int[ndarray, " chosen"], reach: int
) -> dict[str, ndarray]:
    """All firings of the same latent within `reach` tokens of each event, in its context.

    Each event has `count` of them; `offset` is the distance from the event, `value` is float16.
    """
    length = firings.text.length
    span = firings.text.n_contexts * length
    key = firings.latent * span + firings.place
    position = firings.place[events] % length
    low = key[events] - np.minimum(position, reach)
    high = key[events] + np.minimum(length - 1 - position, reach)
    start = np.searchsorted(key, low)
    count = np.searchsorted(key, high, side="right") - start
    around = ragged(start, count)
    value = np.clip(firings.value[around], -LARGEST_HALF, LARGEST_HALF)
    return {
        "count": count,
        "offset": key[around] - spread(key[events], count),
        "value": value.astype(np.float16),
    }


def near_miss_examples(
    firings: Firings,
    missed: tuple[Firings, Float32[ndarray, " event"]],
    n: int,
) -> dict[str, ndarray]:
    """Contexts where a latent never fired, by how close it came; the closest first."""
    events, closeness = missed
    fired = firings.visit[new_groups(firings.visit)]
    silent = np.flatnonzero(~_contains(fired, events.visit))
    some = events.take(silent)
    best = best_of_visits(some.visit, closeness[silent])
    size = closeness[silent][best]
    found = first_of_each(some.latent[best], largest_first(size), some.n_latents, n)
    chosen = at(at(silent, best), found)
    near = np.append(closeness, np.float32(0))[chosen]
    arrays = {**placed(events, chosen), "closeness": near.astype(np.float16)}
    return {f"near_miss/{name}": values for name, values in arrays.items()}


def silent_examples(firings: Firings, options: FeatureOptions) -> dict[str, ndarray]:
    """Contexts where a latent never fired: a random one from each of n equal parts of them."""
    text, n = firings.text, options.n_silent
    visited = np.flatnonzero(new_groups(firings.visit))
    latent, context = firings.latent[visited], firings.context[visited]
    n_visited = np.bincount(latent, minlength=firings.n_latents)
    quiet = (text.n_contexts - n_visited)[:, None]
    low = quiet * np.arange(n) // n
    width = quiet * np.arange(1, n + 1) // n - low
    latents = np.repeat(np.arange(firings.n_latents), n).reshape(-1, n) + firings.first
    slots = np.tile(np.arange(n), len(latents))
    first, second = (
        chance(options.seed, lot, latents.ravel(), slots).reshape(-1, n).astype(np.uint64)
        for lot in (Lot.SILENT_CONTEXT, Lot.SILENT_TOKEN)
    )
    # The rank-th silent context: before it are the visited contexts with at most `rank` silent ones
    # before them.
    rank = low + (first * width.astype(np.uint64) >> np.uint64(32)).astype(np.int64)
    silent_before = context - (np.arange(len(latent)) - starts(n_visited)[latent])
    key = latent * (text.n_contexts + 1) + silent_before
    asked = (latents - firings.first) * (text.n_contexts + 1) + rank
    chosen = rank + np.searchsorted(key, asked, side="right") - starts(n_visited)[:-1, None]
    return _tokens_of(firings, np.where(width > 0, chosen, -1), second)


def _tokens_of(
    firings: Firings, context: Int[ndarray, "latent n"], lot: UInt64[ndarray, "latent n"]
) -> dict[str, ndarray]:
    """A random token of each context; -1 for a context without tokens."""
    text = firings.text
    of_context = text.place // np.uint32(text.length)
    ends = np.searchsorted(of_context, np.arange(text.n_contexts + 1))
    start, count = ends[context], ends[context + 1] - ends[context]
    row = start + (lot * count.astype(np.uint64) >> np.uint64(32)).astype(np.int64)
    there = (context >= 0) & (count > 0)
    position = text.place[np.where(there, row, 0)].astype(np.int64) % text.length
    return {
        "silent/context": np.where(there, context, -1),
        "silent/position": np.where(there, position, 0),
    }


def _contains(
    numbers: Int[ndarray, " rising"], asked: Int[ndarray, " event"]
) -> Bool[ndarray, " event"]:
    place = np.searchsorted(numbers, asked)
    return np.append(numbers, -1)[place] == asked
