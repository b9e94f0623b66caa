"""What filters by a score make of steering success, with intervals over latents."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

THRESHOLDS = (1e-4, 1e-3, 0.01, 0.1, 0.5, 0.9)
SHARES = (0.4, 0.2, 0.1)
N_RESAMPLES, INTERVAL = 2000, (2.5, 97.5)


@dataclass(frozen=True)
class LatentSuccess:
    """One latent at its best strength.

    Attributes:
        success: promised tokens a text, GenSucc@k (Eq. 7), k being the scores' lens.
        plain_success: the same count in the plain model's texts, from the same random numbers.
        perplexity: of the steered continuations under the plain model.
    """

    latent: int
    sign: int
    input: float | None
    output: float
    factor: float
    success: float
    plain_success: float
    perplexity: float


@dataclass(frozen=True)
class FilterRow:
    """The latents that a filter keeps.

    Attributes:
        score: which score is filtered by; "none" for all latents.
        threshold: the least score that is kept.
        share: for a filter that keeps the best of all latents, how many; thresholds mean little
            where most latents pass them.
        gain: success beyond the plain model's count.
        ratio: success over that of all latents: the filter's factor.
        low: the lower end of the factor's 95 % interval (bootstrap over latents).
        high: its upper end.
        gain_ratio: gain over that of all latents, so that words which the plain model says anyway
            count for nothing; 0 where all latents together gain nothing.
        gain_low: the lower end of its interval.
        gain_high: the upper end.
        chance: the share of random directions that pass; None where none were scored.
    """

    score: str
    threshold: float | None
    share: float | None
    n: int
    success: float
    gain: float
    ratio: float
    low: float
    high: float
    gain_ratio: float
    gain_low: float
    gain_high: float
    chance: float | None


def filter_table(
    latents: Sequence[LatentSuccess], chance: Float[ndarray, " direction"] | None = None
) -> list[FilterRow]:
    """Mean success of all latents, and of those that filters on either score keep.

    `chance` are output scores of random directions.
    """
    success = np.array([found.success for found in latents])
    gain = success - np.array([found.plain_success for found in latents])
    rows: list[tuple[str, float | None, float | None]] = [("none", None, None)]
    kept = [np.ones(len(latents), dtype=bool)]
    for score in ("output", "input"):
        values = np.array([getattr(found, score) for found in latents], dtype=np.float64)
        known = values[~np.isnan(values)]
        filters = [(t, None) for t in THRESHOLDS]
        filters += [(float(np.quantile(known, 1 - s)), s) for s in SHARES if len(known)]
        rows += [(score, threshold, share) for threshold, share in filters]
        kept += [values >= threshold for threshold, _ in filters]
    return [
        FilterRow(
            *row,
            int(which.sum()),
            float(success[which].mean()),
            float(gain[which].mean()),
            *ratio_interval(success, which),
            *ratio_interval(gain, which),
            _passing(chance, row),
        )
        for row, which in zip(rows, kept, strict=True)
        if which.any()
    ]


def _passing(
    chance: Float[ndarray, " direction"] | None, row: tuple[str, float | None, float | None]
) -> float | None:
    score, threshold, _ = row
    if chance is None or threshold is None or score != "output":
        return None
    return float((chance >= threshold).mean())


def ratio_interval(
    values: Float[ndarray, " latent"], kept: Bool[ndarray, " latent"]
) -> tuple[float, float, float]:
    """Mean of the kept over that of all, and its 95 % interval: latents are resampled.

    All three are 0 where the mean of all is not positive.
    """
    if values.mean() <= 0:
        return 0.0, 0.0, 0.0
    drawn = np.random.default_rng(0).integers(len(values), size=(N_RESAMPLES, len(values)))
    sample, chosen = values[drawn], kept[drawn]
    number, total = chosen.sum(axis=1), sample.sum(axis=1)
    whole = (number > 0) & (total > 0)
    means = (sample * chosen).sum(axis=1)[whole] / number[whole]
    low, high = np.percentile(means / (total[whole] / len(values)), INTERVAL)
    return float(values[kept].mean() / values.mean()), float(low), float(high)
