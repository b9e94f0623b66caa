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
        score: the score of the filter; "none" for all latents, "random" for random directions
            instead of latents, filtered by output score.
        threshold: the lowest score kept.
        share: for a filter that keeps the best latents, their share; used because thresholds mean
            little if most latents pass.
        gain: success minus the plain model's count.
        ratio: success divided by that of all latents: the filter's factor.
        low: the lower end of the factor's 95 % interval (bootstrap over latents).
        high: its upper end.
        equal_low: the lower end of the factor's 95 % range over as many random latents.
        equal_high: its upper end.
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
    equal_low: float
    equal_high: float
    gain_ratio: float
    gain_low: float
    gain_high: float
    chance: float | None


def filter_table(
    latents: Sequence[LatentSuccess],
    chance: Float[ndarray, " direction"] | None = None,
    directions: Sequence[LatentSuccess] = (),
) -> list[FilterRow]:
    """Mean success of all latents, and of those kept by filters on each score.

    `chance` are output scores of random directions, and `directions` the success of some of them.
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
            *equal_number(success, int(which.sum())),
            *ratio_interval(gain, which),
            _passing(chance, row),
        )
        for row, which in zip(rows, kept, strict=True)
        if which.any()
    ] + _random_rows(success, gain, directions)


def _random_rows(
    success: Float[ndarray, " latent"],
    gain: Float[ndarray, " latent"],
    directions: Sequence[LatentSuccess],
) -> list[FilterRow]:
    """Random directions: all of them, and those whose output scores pass each threshold."""
    theirs = np.array([found.success for found in directions])
    more = theirs - np.array([found.plain_success for found in directions])
    output = np.array([found.output for found in directions])
    kept = [(None, output > -np.inf), *((t, output >= t) for t in THRESHOLDS)]
    return [
        FilterRow(
            *("random", threshold, None, int(which.sum())),
            *(float(theirs[which].mean()), float(more[which].mean())),
            *other_ratio(theirs[which], success),
            *equal_number(success, int(which.sum())),
            *other_ratio(more[which], gain),
            chance=None,
        )
        for threshold, which in kept
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


def other_ratio(
    others: Float[ndarray, " other"], values: Float[ndarray, " latent"]
) -> tuple[float, float, float]:
    """The mean of `others` over that of `values`, with a 95 % interval from resampling both.

    All three are 0 if the mean of `values` is not positive.
    """
    if values.mean() <= 0:
        return 0.0, 0.0, 0.0
    generator = np.random.default_rng(0)
    mine, theirs = (
        each[generator.integers(len(each), size=(N_RESAMPLES, len(each)))].mean(axis=1)
        for each in (values, others)
    )
    low, high = np.percentile(theirs[mine > 0] / mine[mine > 0], INTERVAL)
    return float(others.mean() / values.mean()), float(low), float(high)


def equal_number(values: Float[ndarray, " latent"], n: int) -> tuple[float, float]:
    """The middle 95 % of the mean of `n` random values over the mean of all; 0 if that is none."""
    if values.mean() <= 0:
        return 0.0, 0.0
    n = min(n, len(values))
    order = np.random.default_rng(0).random((N_RESAMPLES, len(values))).argsort(axis=1)
    low, high = np.percentile(values[order[:, :n]].mean(axis=1) / values.mean(), INTERVAL)
    return float(low), float(high)
