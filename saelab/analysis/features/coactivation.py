"""Which latents fire on the same tokens, over all pairs that ever do."""

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
    starts,
)

N_COACTIVE = 8
MOST_FIRINGS = 256
"""For a latent with more firings, this many random ones are used; up to here counts are exact."""
CELLS = 2**21
"""Pairs of latents whose common firings are counted together."""
MOST_LATENTS = 512
CLASSES = 128


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
    ends, step = starts(asked.counts), max(1, min(MOST_LATENTS, CELLS // codes.d_sae))
    for low in range(0, n, step):
        high = min(n, low + step)
        part = asked.take(np.arange(ends[low], ends[high]))
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


def _nearest(
    codes: RecordedCodes, firings: Firings, part: Firings, low: int, high: int
) -> tuple[Int[ndarray, "latent n"], Float32[ndarray, "latent n"]]:
    """The nearest latents of `low` to `high`, whose firings are `part`."""
    asker, other = codes.latents_of(part.row)
    n, d_sae = high - low, codes.d_sae
    # Counting in a table takes a tenth of the time of sorting the pairs.
    times = np.bincount((part.latent - low)[asker] * d_sae + other, minlength=n * d_sae)
    own = firings.counts[low:high, None].astype(np.float32)
    stands_for = own / np.minimum(own, MOST_FIRINGS).clip(1)
    theirs = codes.counts.astype(np.float32)
    both = times.reshape(n, d_sae).astype(np.float32)
    both *= stands_for
    np.minimum(both, theirs, out=both)
    either = own + theirs
    either -= both
    jaccard = np.divide(both, np.maximum(either, 1, out=either), out=both)
    jaccard[np.arange(n), np.arange(low, high) + firings.first] = 0
    # The largest of each of CLASSES classes of latents: no fewer reach the N-th of them.
    whole = d_sae // CLASSES * CLASSES
    peaks = jaccard[:, :whole].reshape(n, -1, CLASSES).max(axis=1, initial=0)
    limit = np.partition(peaks, -N_COACTIVE, axis=1)[:, -N_COACTIVE, None]
    latent, other = np.nonzero((jaccard >= limit) & (jaccard > 0))
    size = jaccard[latent, other]
    best = first_of_each(latent, largest_first(size), n, N_COACTIVE)
    share = np.append(size, np.float32(0))[best]
    return np.append(other, -1)[best], share
