"""Which latents fire on the same tokens, over all pairs that ever do."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float32, Int
from numpy import ndarray

from saelab.analysis.features.codes import RecordedCodes
from saelab.analysis.features.firings import (
    Firings,
    Lot,
    chance,
    first_of_each,
    largest_first,
    new_groups,
    starts,
)

N_COACTIVE = 8
MOST_FIRINGS = 256
"""For a latent with more firings, this many random ones are used; up to here counts are exact."""
FIRINGS_AT_ONCE = 2**17


def coactive(codes: RecordedCodes, firings: Firings, seed: int) -> dict[str, ndarray]:
    """For each latent, the others with the largest Jaccard index |both fire| / |either fires|.

    It is exact for latents with at most MOST_FIRINGS firings. For others, the share of firings with
    the other latent is estimated on this many of them (standard error at most 3.2 points); the
    numbers of firings are always exact. -1 fills the places if fewer latents ever fire together.
    """
    asked = firings.take(np.flatnonzero(_sampled(firings, seed)))
    n = firings.n_latents
    latents = np.full((n, N_COACTIVE), -1, dtype=np.int64)
    jaccard = np.zeros((n, N_COACTIVE), dtype=np.float32)
    for part in _parts(asked):
        low, high = int(part.latent[0]), int(part.latent[-1]) + 1
        latents[low:high], jaccard[low:high] = _nearest(codes, firings, part, low, high)
    return {"coactive/latents": latents, "coactive/jaccard": jaccard}


def _sampled(firings: Firings, seed: int) -> Bool[ndarray, " event"]:
    kept = np.ones(len(firings), dtype=bool)
    crowded = np.flatnonzero((firings.counts > MOST_FIRINGS)[firings.latent])
    if len(crowded):
        some = firings.take(crowded)
        lot = chance(seed, Lot.COACTIVE, some.latent + some.first, some.row)
        chosen = first_of_each(some.latent, lot, some.n_latents, MOST_FIRINGS)
        kept[crowded] = False
        kept[crowded[chosen[chosen >= 0]]] = True
    return kept


def _parts(firings: Firings) -> Iterator[Firings]:
    """The firings in pieces of limited size, each with all firings of its latents."""
    ends = starts(firings.counts)
    first = 0
    while first < len(firings):
        last_latent = int(np.searchsorted(ends, first + FIRINGS_AT_ONCE, side="right")) - 1
        last = max(int(ends[last_latent]), int(ends[firings.latent[first] + 1]))
        yield firings.take(np.arange(first, last))
        first = last


def _nearest(
    codes: RecordedCodes, firings: Firings, part: Firings, low: int, high: int
) -> tuple[Int[ndarray, "latent n"], Float32[ndarray, "latent n"]]:
    """The nearest latents of `low` to `high`, whose firings are `part`."""
    asker, other = codes.latents_of(part.row)
    pair = np.sort((part.latent - low)[asker] << 32 | other)
    begins = np.flatnonzero(new_groups(pair))
    times = np.diff(begins, append=len(pair)).astype(np.float32)
    pair = pair[begins]
    latent, other = pair >> 32, pair & 0xFFFFFFFF
    own = firings.counts[low:high].astype(np.float32)
    stands_for = own / np.minimum(own, MOST_FIRINGS).clip(1)
    theirs = codes.counts.astype(np.float32)[other]
    both = np.minimum(times * stands_for[latent], theirs)
    jaccard = both / (own[latent] + theirs - both)
    jaccard[other == latent + (low + firings.first)] = 0
    best = first_of_each(latent, largest_first(jaccard), high - low, N_COACTIVE)
    share = np.append(jaccard, np.float32(0))[best]
    return np.where(share > 0, np.append(other, -1)[best], -1), share
