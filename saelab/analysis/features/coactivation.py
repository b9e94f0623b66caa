"""Which latents fire on the same tokens, over all pairs that ever do."""

import numpy as np
from jaxtyping import Bool, Float32, Int
from numpy import ndarray

from saelab.analysis.features.codes import RecordedCodes
from saelab.analysis.features.firings import (
    Firings,
    Lot,
    at,
    contenders,
    first_of_each,
    largest_first,
    lowest_of_each,
    new_groups,
    owners,
    spread,
)

N_COACTIVE = 8
MOST_FIRINGS = 256
"""For a latent with more firings, this many random ones are used; up to here counts are exact."""
EVENTS_AT_ONCE = 2**13
"""Firings whose rows are looked up together; a latent has at most MOST_FIRINGS of them. The system
hands out memory for more pairs page by page, which all threads wait for."""
PAIRS = 2**32
"""Pairs of latents that a 32-bit number can tell apart."""


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
    theirs = codes.counts.astype(np.float32)
    ends, low = asked.begins, 0
    while low < n:
        high = int(np.searchsorted(ends, ends[low] + EVENTS_AT_ONCE, side="right")) - 1
        high = min(max(high, low + 1), low + PAIRS // codes.d_sae, n)
        part = asked.take(np.arange(ends[low], ends[high]))
        latents[low:high], jaccard[low:high] = _nearest(codes, theirs, firings, part, low, high)
        low = high
    return {"coactive/latents": latents, "coactive/jaccard": jaccard}


def _sampled(firings: Firings, seed: int) -> Bool[ndarray, " event"]:
    kept = np.ones(len(firings), dtype=bool)
    crowded = np.flatnonzero((firings.counts > MOST_FIRINGS)[firings.latent])
    if len(crowded):
        lot = firings.lots(seed, Lot.COACTIVE)[crowded]
        counts = np.where(firings.counts > MOST_FIRINGS, firings.counts, 0)
        chosen = lowest_of_each(firings.latent[crowded], lot, counts, MOST_FIRINGS)
        kept[crowded] = False
        kept[crowded[chosen[chosen >= 0]]] = True
    return kept


def _nearest(
    codes: RecordedCodes,
    theirs: Float32[ndarray, " d_sae"],
    firings: Firings,
    part: Firings,
    low: int,
    high: int,
) -> tuple[Int[ndarray, "latent n"], Float32[ndarray, "latent n"]]:
    """The nearest latents of `low` to `high`, whose firings are `part`.

    `theirs` has the number of firings of every latent.
    """
    count, other = codes.latents_of(part.row)
    # Time and memory grow with the pairs that occur, not with the square of the latents.
    d_sae = np.uint32(codes.d_sae)
    pair = spread((part.latent - low).astype(np.uint32) * d_sae, count)
    pair += other
    pair.sort()
    begins = np.flatnonzero(new_groups(pair))
    times = np.diff(begins, append=len(pair)).astype(np.float32)
    pair, askers = pair[begins], np.arange(high - low, dtype=np.uint32)
    first_pair = np.searchsorted(pair, askers * d_sae)
    n_pairs = np.diff(first_pair, append=len(pair))
    asker = owners(n_pairs)
    other = pair - asker.astype(np.uint32) * d_sae
    own = firings.counts[low:high].astype(np.float32)
    stands_for = own / np.minimum(own, MOST_FIRINGS).clip(1)
    both = np.minimum(times * stands_for[asker], theirs[other])
    jaccard = both / np.maximum(own[asker] + theirs[other] - both, 1)
    itself = np.searchsorted(pair, askers * d_sae + askers + np.uint32(low + firings.first))
    jaccard[itself[n_pairs > 0]] = 0
    kept = contenders(asker, jaccard, n_pairs, N_COACTIVE)
    found = first_of_each(asker[kept], largest_first(jaccard[kept]), high - low, N_COACTIVE)
    best = at(kept, found)
    share = np.append(jaccard, np.float32(0))[best]
    nearest = np.append(other, np.uint32(0))[best].astype(np.int64)
    return np.where(share > 0, nearest, -1), share
