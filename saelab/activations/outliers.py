"""Massive activations: the few rows of a site with norms many times those of the others.

Transformers write activations of a few channels, thousands of times as large as the rest, at tokens
that carry no meaning of their own, mostly the first of a context (arXiv 2402.17762): attention
sinks (arXiv 2309.17453). A few rows in ten thousand can then hold most of a site's variance, and an
SAE's error says little about all other rows.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float32, Int64, Integer

from saelab.activations.format import DamagedStoreError
from saelab.activations.norms import (
    N_BINS,
    NormRecord,
    bin_edges,
    median_norm,
    merged_counts,
)
from saelab.activations.site import SiteView
from saelab.activations.statistics import ColumnSums, array_sums, merged, without

MASSIVE = 42
"""Bins from the median to the limit: 2^(42/16), about 6 times the median."""
GAP = 10
"""Bins below the limit that must be almost empty: from about 4 times the median on."""
MAX_SHARE_OF_ROWS = 0.1
MIN_SHARE_OF_VARIANCE = 0.05
MAX_SUMMED = 2**16
MAX_CANCELLED = 1e8
"""Largest ratio of the left-out rows' squares to the others'; beyond it, subtraction loses
precision."""

RULE = (
    "norm above 6 times the site's median norm, where such rows are at most a tenth of all, hold "
    "at least a twentieth of the variance, and are more than twice as many as the rows of 4 to 6 "
    "times the median"
)
"""The rule in words.

The last condition separates a distinct population from the tail of one: a tail of finite variance
has at least 1.25 times as many rows between 4 and 6 times the median as beyond 6. In SmolLM2-135M's
residual stream (blocks 12 and 20), 10 and 12 rows of 30,099 exceed 6 times the median, up to 179
times, and none or one lies between 4 and 6; these rows hold 74 % and 88 % of the variance."""


@dataclass(frozen=True)
class Outliers:
    """The massive rows of a site, by `RULE`.

    Attributes:
        n_rows: number of rows of the site, massive rows included.
        median_norm: median norm of all rows, to 2 %.
        max_norm: rows with a larger norm are massive; None if there are none.
        rows: the massive rows, as sorted indices in store order.
        share: their share of the variance: sum ||x - E x||^2 over them, divided by that over all
            rows.
        kept: the sums of the other rows. Exact for up to 65,536 massive rows; with more, their mean
            is estimated from 65,536.
    """

    n_rows: int
    median_norm: float
    max_norm: float | None
    rows: Int64[np.ndarray, " n"]
    share: float
    kept: ColumnSums


def find_outliers(site: SiteView) -> Outliers:
    """The massive rows of a site's committed units.

    Hook files record what the rule needs. For an older store every row is read once, and the record
    is kept in the store's `stats/`, if that can be written.

    Raises:
        DamagedStoreError: a row that must be read is damaged.
    """
    records = site.norm_records()
    counts = merged_counts(records)
    median, edge = median_norm(counts), _limit_edge(counts)
    nothing = Outliers(site.n_rows, median, None, np.empty(0, np.int64), 0.0, site.sums)
    if site.spec.kind == "gradient" or edge is None:
        return nothing
    limit = float(np.float32(bin_edges()[edge]))
    found = [_beyond(site, unit, record, edge, limit) for unit, record in enumerate(records)]
    rows = np.concatenate([rows for rows, _ in found])
    order = np.argsort(rows)
    rows, norms = rows[order], np.concatenate([norms for _, norms in found])[order]
    if not len(rows):
        return nothing
    sums = left_out_sums(site, rows, norms)
    share = _share(sums, site.sums)
    if share < MIN_SHARE_OF_VARIANCE:
        return nothing
    return Outliers(site.n_rows, median, limit, rows, share, _kept_sums(site, rows, sums))


def _limit_edge(counts: Integer[np.ndarray, " bin"]) -> int | None:
    """The bin where massive norms start, if the counts satisfy `RULE`; else None."""
    total = np.cumsum(counts)
    middle = int(np.searchsorted(total, (total[-1] + 1) // 2))
    edge = middle + MASSIVE
    # The median is (almost) zero: most rows are zero, and all others would be massive.
    if middle == 0 or edge >= N_BINS:
        return None
    beyond, between = int(counts[edge:].sum()), int(counts[edge - GAP : edge].sum())
    few = 0 < beyond <= MAX_SHARE_OF_ROWS * total[-1]
    return edge if few and 2 * between < beyond else None


def _beyond(
    site: SiteView, unit: int, record: NormRecord, edge: int, limit: float
) -> tuple[Int64[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
    """The rows of a unit with norms beyond the limit, in store order, and these norms."""
    if int(record.norm_counts[edge:].sum()) <= len(record.tail_row):
        rows, norms = record.tail_row.astype(np.int64), record.tail_norm
    else:
        norms = site.unit_norms(unit)
        rows = np.arange(len(norms))
    large = norms > limit
    return rows[large] + site.unit_start(unit), norms[large]


def left_out_sums(
    site: SiteView,
    rows: Int64[np.ndarray, " n"],
    norms: Float32[np.ndarray, " n"] | None = None,
) -> ColumnSums:
    """The sums of these rows; above 65,536 rows, estimated from 65,536 of them.

    If their `norms` are given, the squares add up to those of all rows.

    Raises:
        DamagedStoreError: a row's norm differs from the one given.
    """
    chosen = np.arange(len(rows))
    if len(rows) > MAX_SUMMED:
        chosen = np.linspace(0, len(rows) - 1, MAX_SUMMED).astype(np.int64)
    sums, found = array_sums(site.read_alone(rows[chosen]))
    if norms is not None and not np.allclose(found, norms[chosen], rtol=1e-4, atol=0):
        raise DamagedStoreError(f"{site.spec.name} has rows of other norms than its files record.")
    if len(chosen) == len(rows):
        return sums
    n = len(rows) / len(chosen)
    squares = sums.sum_sq * n
    if norms is not None:
        squares *= (norms.astype(np.float64) ** 2).sum() / squares.sum()
    return ColumnSums(len(rows), sums.sum * n, squares, sums.max_abs)


def _share(part: ColumnSums, whole: ColumnSums) -> float:
    """Sum ||x - E x||^2 over the part, divided by that over the whole; E x is the whole's mean."""
    mean = whole.mean
    about = part.sum_sq.sum() - 2 * (mean @ part.sum) + part.n * (mean @ mean)
    return float(about / max(whole.total_variance * whole.n, np.finfo(float).tiny))


def _kept_sums(site: SiteView, rows: Int64[np.ndarray, " n"], left_out: ColumnSums) -> ColumnSums:
    """The sums of a site's rows except these, whose sums are given."""
    kept = without(site.sums, left_out)
    if left_out.sum_sq.sum() <= MAX_CANCELLED * kept.sum_sq.sum():
        return kept
    from saelab.activations.summing import summed

    starts = np.append(site.block_starts, site.n_rows)
    cuts = np.searchsorted(rows, starts)
    parts = []
    for block, (first, last) in enumerate(pairwise(cuts)):
        x = site.read_block(block)
        inside = np.ones(len(x), dtype=bool)
        inside[rows[first:last] - starts[block]] = False
        if inside.any():
            parts.append(summed(x[inside])[0])
    return merged(parts)
