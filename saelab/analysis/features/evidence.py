"""The evidence about every latent in recorded codes, a few latents at a time."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from saelab.analysis.features.coactivation import coactive
from saelab.analysis.features.codes import RecordedCodes
from saelab.analysis.features.examples import (
    examples,
    extreme,
    near_miss_examples,
    silent_examples,
)
from saelab.analysis.features.firings import Firings, starts
from saelab.analysis.features.options import FeatureOptions
from saelab.analysis.features.statistics import Strata, figures
from saelab.analysis.features.token_index import Postings, TokenIndex
from saelab.analysis.histogram import one_sided
from saelab.console import progress

FIRINGS_AT_ONCE = 2**20
"""Firings processed together; a latent with more firings is processed alone."""
WORKERS = min(16, os.cpu_count() or 1)


def evidence_arrays(
    codes: RecordedCodes,
    options: FeatureOptions,
    d_vocab: int,
    massive: Bool[ndarray, " row"] | None = None,
) -> dict[str, ndarray]:
    """Every dataset that the text decides, in the order and types of the file.

    `massive` says which rows are massive activations, if known.

    Time grows with the number of firings, not with latents times tokens; memory with the result,
    FIRINGS_AT_ONCE and the number of cores, which share the work, and by 4 bytes a firing.
    """
    index = TokenIndex(codes.tokens.ravel()[codes.text.place], d_vocab)
    parts: list[dict[str, ndarray]] = []

    def of_range(first: int, last: int) -> tuple[dict[str, ndarray], Postings]:
        firings = codes.firings(first, last)
        part = _of_range(codes, options, firings)
        if massive is not None:
            part |= on_massive_rows(firings, massive, options.n_examples)
        # At once, since the parts of a million latents wait for each other.
        return narrowed(part, codes.text.length, options.reach), index.postings(firings)

    most = min(FIRINGS_AT_ONCE, max(1, int(codes.counts.sum()) // WORKERS))
    with progress("Evidence", codes.d_sae, "latents") as bar:
        for n, part, postings in _on_all_cores(of_range, list(codes.ranges(most))):
            index.add(postings)
            parts.append(part)
            bar.advance(n)
    arrays = joined(parts)
    if not arrays["latent/n_negative"].any():
        arrays = {name: v for name, v in arrays.items() if not name.startswith("negative/")}
    arrays["histogram/counts"] = one_sided(arrays["histogram/counts"])
    corpus = {"corpus/tokens": codes.tokens, "corpus/document": codes.document}
    return arrays | index.arrays() | corpus


def _on_all_cores(
    of_range: Callable[[int, int], tuple[dict[str, ndarray], Postings]],
    ranges: Sequence[tuple[int, int]],
) -> Iterator[tuple[int, dict[str, ndarray], Postings]]:
    """What every range of latents gives, in order, and how many latents it has."""
    # numpy sorts and gathers without Python's lock.
    pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="evidence")
    try:
        waiting = [(last - first, pool.submit(of_range, first, last)) for first, last in ranges]
        for n, future in waiting:
            yield n, *future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _of_range(
    codes: RecordedCodes, options: FeatureOptions, firings: Firings
) -> dict[str, ndarray]:
    latents = firings.first, firings.first + firings.n_latents
    strata = Strata.of(firings, options.n_strata)
    arrays = figures(firings, strata) | examples(firings, strata, options)
    missed = codes.near_misses(*latents)
    if missed is not None:
        arrays |= near_miss_examples(firings, missed, options.n_silent)
    arrays |= silent_examples(firings, options)
    return arrays | coactive(codes, firings, options.seed)


def on_massive_rows(
    firings: Firings, massive: Bool[ndarray, " row"], n_examples: int
) -> dict[str, ndarray]:
    """The number of firings, and of the largest ones of each sign, on massive rows."""
    there = massive[firings.row]
    n_fired = np.bincount(firings.latent[there], minlength=firings.n_latents)
    top = np.zeros(firings.n_latents, dtype=np.int64)
    for sign in (1, -1):
        events = extreme(firings, sign, n_examples)
        top += (np.append(there, False)[events] & (events >= 0)).sum(axis=1)
    return {"latent/n_massive": n_fired, "latent/n_massive_top": top}


def joined(parts: list[dict[str, ndarray]]) -> dict[str, ndarray]:
    """The parts of consecutive latents joined; each is taken out of its part."""
    arrays = {name: np.concatenate([part.pop(name) for part in parts]) for name in [*parts[0]]}
    # A latent's windows are consecutive, so their start is enough to find them.
    for name in [name for name in arrays if name.endswith("/window_count")]:
        arrays[name.replace("count", "start")] = starts(arrays[name].sum(axis=1, dtype=np.int64))
    return arrays


def narrowed(part: Mapping[str, ndarray], length: int, reach: int) -> dict[str, ndarray]:
    """Some latents' arrays in the file's dtypes."""
    limits = {"position": length, "window_offset": reach, "window_count": 2 * reach + 1}

    def kind(name: str) -> type[np.signedinteger[Any]]:
        return signed_type(limits.get(name.partition("/")[2]) or np.iinfo(np.int32).max)

    return {
        name: values.astype(kind(name))
        if values.dtype.kind == "i" and not name.startswith("latent/")
        else values
        for name, values in part.items()
    }


def signed_type(largest: int) -> type[np.signedinteger[Any]]:
    """The smallest signed dtype that holds `largest`."""
    if largest <= np.iinfo(np.int8).max:
        return np.int8
    return np.int16 if largest <= np.iinfo(np.int16).max else np.int32
