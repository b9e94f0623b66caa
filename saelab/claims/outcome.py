"""What a claim's measurement found: figures with intervals, and what of the claim holds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["reproduced", "in part", "not reproduced"]

RANDOM_DIRECTIONS = "random directions"
RANDOM_LATENTS = "random latents"
"""The names of the two controls of every claim that changes the model's activations."""
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Quantile 0.975 of Student's t for 1 to 9 degrees of freedom."""
Z_975 = 1.959964


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval.

    Attributes:
        value: the mean over seeds, or another estimate.
        low, high: the interval; both equal `value` if there is only one seed.
        n: number of seeds, or of other things that the interval is over.
        over: what these things are.
        values: one value per seed.
    """

    value: float
    low: float
    high: float
    n: int
    over: str = "seeds"
    values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.value, self.low, self.high))):
            raise ValueError(f"A figure is not finite: {self.value} [{self.low}, {self.high}].")

    def below(self, limit: float) -> bool:
        """Whether the whole interval is below `limit`."""
        return self.high < limit

    def above(self, limit: float) -> bool:
        """Whether the whole interval is above `limit`."""
        return self.low > limit

    def text(self) -> str:
        """For a table: 0.412 [0.39, 0.431]; without an interval if there is one seed."""
        interval = f" [{self.low:.3g}, {self.high:.3g}]" if self.n > 1 else ""
        return f"{self.value:.3g}{interval}"


def over_seeds(values: Sequence[float]) -> Estimate:
    """The mean of one value per seed, with Student's t interval (95 %)."""
    n = len(values)
    mean = sum(values) / n
    if n == 1:
        return Estimate(mean, mean, mean, 1, values=(mean,))
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    half = _t(n - 1) * deviation / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n, values=tuple(values))


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """One ratio per seed.

    Raises:
        ValueError: a denominator is not positive, so a ratio would say nothing.
    """
    if min(under) <= 0:
        raise ValueError(f"There is no ratio to {min(under):.3g}.")
    return [a / b for a, b in zip(over, under, strict=True)]


def _t(freedom: int) -> float:
    """Student's t at 0.975; beyond the table by its expansion around the normal distribution."""
    if freedom <= len(T_975):
        return T_975[freedom - 1]
    z = Z_975
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / freedom + second / freedom**2


@dataclass(frozen=True)
class Outcome:
    """What was measured for a claim.

    Attributes:
        figures: the figures by name. The first one decides most; it stands in the table.
        holds: the claim's parts, each a sentence, and whether the figures show it.
        reason: why parts do not hold, as one sentence, if there is more to say than which.
        controls: figures of things chosen at random, by name: `RANDOM_DIRECTIONS` and
            `RANDOM_LATENTS` in claims that change activations. A control has the unit of the first
            figure.
    """

    figures: Mapping[str, Estimate]
    holds: Mapping[str, bool]
    reason: str = ""
    controls: Mapping[str, Estimate] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.figures or not self.holds:
            raise ValueError("An outcome needs at least one figure and one part of the claim.")

    @property
    def verdict(self) -> Verdict:
        """Reproduced: every part holds; not reproduced: none does; otherwise in part."""
        if all(self.holds.values()):
            return "reproduced"
        return "in part" if any(self.holds.values()) else "not reproduced"

    def why(self) -> str:
        """Why it is not reproduced completely: the parts that do not hold, and the reason."""
        missing = [part for part, held in self.holds.items() if not held]
        return f"Not shown: {'; '.join(missing)}. {self.reason}".strip() if missing else ""
