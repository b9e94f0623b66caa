"""The effect of filtering by a score on steering success, with intervals over latents."""

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
        success: raised tokens per text, GenSucc@k (Eq. 7); k is the scores' `n_lens`.
        plain_success: the same count in the plain model's texts, from the same random numbers.
        perplexity: perplexity of the steered continuations under the plain model.
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
        score: the score of the filter; "none" for all latents.
        threshold: the lowest score kept.
        share: for a filter that keeps the best latents, their share; used because thresholds mean
            little if most latents pass.
        gain: success minus the plain model's count.
        ratio: success divided by that of all latents: the filter's factor.
        low: the lower end of the factor's 95 % interval (bootstrap over latents).
        high: its upper end.
        gain_ratio: gain divided by that of all latents, so that words of the plain model do not
            count; 0 if all latents together gain nothing.
        gain_low: the lower end of its interval.
        gain_high: the upper end.
        chance: the share of random directions that pass; None if none were scored.
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
    """Mean success of all latents, and of those kept by filters on each score.

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
    """The kept latents' mean over that of all, with a 95 % interval from resampled latents.

    All three are 0 if the mean of all is not positive.
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
