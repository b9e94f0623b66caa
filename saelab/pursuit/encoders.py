"""Pursuits and penalised least squares as encoders of one kind, with a target for their sparsity.

All work with atoms of unit norm, so that codes do not depend on how a dictionary is scaled.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.config import UsageError
from saelab.pursuit.encoder_names import GREEDY, EncoderName
from saelab.pursuit.greedy import orthogonal_pursuit
from saelab.pursuit.matching_pursuit import Pursuit, matching_pursuit, merged
from saelab.pursuit.shrinkage import Stop, minimise
from saelab.resources import batch_budget
from saelab.types import SparseCodes

ENCODERS: tuple[EncoderName, ...] = get_args(EncoderName)
KINDS = {"lasso": "l1", "l0": "l0", "half": "half", "cel0": "cel0"}
"""The penalty of each encoder that minimises one."""
STOP = Stop(tolerance=1e-4, max_steps=1000)
"""How exactly they are minimised: a gap of 1e-4 of a row's square is far below any FVU."""
SPREAD = 4
"""A penalised rule gives a row at most so many times as many atoms as rows have on average."""
CLOSE = 0.005
"""The mean L0 may differ from its target by this share."""
TRIES = 24
MOST_BYTES = {"cpu": 2**28, "cuda": 2**32}
"""Most memory of the rows that are encoded at once."""


@dataclass(frozen=True)
class RowEncoder:
    """How rows are encoded in a dictionary.

    Attributes:
        name: `omp` (orthogonal matching pursuit) and `mp` (matching pursuit) take a given number of
            atoms. `omp-RULE` stops by a penalty, see `saelab.pursuit.greedy`.
            `lasso`, `l0`, `half` and `cel0` minimise one, see `saelab.pursuit.shrinkage`.
        amount: the number of atoms of a row, or the penalty for atoms of unit norm.
        most: the most atoms of a row that `omp-RULE` takes, or steps that `mp` takes.
        nonnegative: whether codes are >= 0.
        weights: of the latents, for `omp-RULE`.
    """

    name: str
    amount: float | int
    most: int
    nonnegative: bool
    weights: Float[Tensor, " d_sae"] | None = None

    @property
    def counts(self) -> bool:
        """Whether `amount` is a number of atoms."""
        return self.name in ("omp", "mp")

    def encode(
        self,
        x: Float[Tensor, "batch d"],
        unit: Float[Tensor, "d_sae d"],
        counts: Int[Tensor, " batch"] | None = None,
    ) -> SparseCodes:
        """The codes of centred rows; they are encoded a few at a time.

        Args:
            x: rows, centred.
            unit: atoms of unit norm.
            counts: for `omp` and `mp`, the number of atoms of each row, instead of `amount`.
        """
        if counts is None:
            counts = torch.full((len(x),), int(self.amount), device=x.device)
        row = 32 * len(unit) + 8 * self.most * (2 * x.shape[1] + 4 * self.most)
        at_once = max(1, min(batch_budget(x.device), MOST_BYTES.get(x.device.type, 2**28)) // row)
        pieces = zip(x.split(at_once), counts.split(at_once), strict=True)
        parts = [self._encode(rows, unit, n) for rows, n in pieces]
        return parts[0] if len(parts) == 1 else _joined(parts)

    def _encode(
        self, x: Float[Tensor, "n d"], unit: Float[Tensor, "d_sae d"], counts: Int[Tensor, " n"]
    ) -> SparseCodes:
        if self.name in KINDS:
            kind = KINDS[self.name]
            found = minimise(
                x, unit, self.amount, kind=kind, nonnegative=self.nonnegative, stop=STOP
            )
            return found.codes
        if self.name == "mp":
            return _matched(x, unit, counts, self.most, nonnegative=self.nonnegative)
        if self.name == "omp":
            return orthogonal_pursuit(x, unit, counts, nonnegative=self.nonnegative)
        return orthogonal_pursuit(
            x,
            unit,
            self.most,
            rule=self.name.removeprefix(GREEDY),
            penalty=self.amount,
            weights=self.weights,
            nonnegative=self.nonnegative,
        )


def _joined(parts: list[SparseCodes]) -> SparseCodes:
    """The rows of all parts, ragged, where they are."""
    row, n_rows = [], 0
    for part in parts:
        row.append(part.rows()[part.active] + n_rows)
        n_rows += len(part)
    values, indices = (
        torch.cat([getattr(part, name)[part.active] for part in parts])
        for name in ("values", "indices")
    )
    starts = torch.arange(n_rows, device=values.device)
    return SparseCodes(values, indices, parts[0].d_sae, torch.searchsorted(torch.cat(row), starts))


def _steps(
    x: Float[Tensor, "n d"], unit: Float[Tensor, "d_sae d"], n_steps: int, *, nonnegative: bool
) -> Pursuit:
    """Matching pursuit; with signs it chooses among the atoms and their opposites."""
    if nonnegative:
        return matching_pursuit(x, unit, n_steps)
    found = matching_pursuit(x, torch.cat([unit, -unit]), n_steps)
    values = torch.where(found.indices < len(unit), found.values, -found.values)
    return Pursuit(values, found.indices % len(unit), found.residual)


def _matched(
    x: Float[Tensor, "n d"],
    unit: Float[Tensor, "d_sae d"],
    counts: Int[Tensor, " n"],
    most: int,
    *,
    nonnegative: bool,
) -> SparseCodes:
    """The steps of matching pursuit before the one that would make more than `counts` active."""
    found = _steps(x, unit, most, nonnegative=nonnegative)
    chosen = merged(found, len(unit)).active.cumsum(1)
    values = torch.where(chosen <= counts[:, None], found.values, 0.0)
    return merged(Pursuit(values, found.indices, found.residual), len(unit))


@torch.no_grad()
def calibrated(
    name: str,
    x: Float[Tensor, "batch d"],
    unit: Float[Tensor, "d_sae d"],
    l0: float | int,
    *,
    nonnegative: bool,
    weights: Float[Tensor, " d_sae"] | None = None,
) -> RowEncoder:
    """The encoder whose steps or penalty give these rows a mean L0 of about `l0`.

    `omp` and `mp` take `l0` atoms, rounded; `mp`, whose steps may choose an atom again, at most
    four times as many steps. For the others the penalty is found by trying.

    Raises:
        UsageError: the encoder is unknown, weights are given to one that has none, or no row has a
            code.
    """
    if name not in ENCODERS:
        raise UsageError(f"{name!r} is no encoder; there are {', '.join(ENCODERS)}.")
    if weights is not None and not name.startswith(GREEDY):
        rules = ", ".join(one for one in ENCODERS if one.startswith(GREEDY))
        raise UsageError(f"The encoder {name} has no weights; {rules} have.")
    widest = min(unit.shape)
    if not 0 < l0 <= widest:
        raise UsageError(
            f"An L0 of {l0:g} is not possible: rows of {unit.shape[1]} dimensions in {len(unit)} "
            f"latents need more than 0 and at most {widest}."
        )
    most = min(widest, SPREAD * math.ceil(l0))
    plain = RowEncoder(name, max(1, round(l0)), most, nonnegative, weights)
    if plain.counts:
        return plain

    def l0_of(penalty: float) -> float:
        return replace(plain, amount=penalty).encode(x, unit).mean_l0()

    return replace(
        plain, amount=_penalty(l0_of, _guess(name, x, unit, l0, positive=nonnegative), l0)
    )


def _guess(
    name: str,
    x: Float[Tensor, "batch d"],
    unit: Float[Tensor, "d_sae d"],
    l0: float | int,
    *,
    positive: bool,
) -> float:
    """A penalty of the right size: where an atom of the l0-th largest correlation just pays."""
    sample = x[:64]
    c = sample @ unit.T
    c = float((c if positive else c.abs()).topk(math.ceil(l0), dim=1).values[:, -1].mean())
    n, c = float(sample.norm(dim=1).mean()), max(c, 1e-12)
    guesses = {
        "omp-l0": c**2,
        "omp-l1": 2 * c,
        "omp-sqrt-l0": n - math.sqrt(max(0.0, n**2 - c**2)),
        "omp-sqrt-l1": c / max(n, 1e-12),
        "lasso": c,
        "half": c**1.5,
    }
    return max(guesses.get(name, c**2 / 2), 1e-12)


def _penalty(l0_of: Callable[[float], float], start: float, target: float | int) -> float:
    """The penalty whose L0 is nearest to the target among those tried; L0 falls as it rises."""
    best, apart = start, math.inf
    denser: tuple[float, float] | None = None
    sparser: tuple[float, float] | None = None
    penalty = start
    for attempt in range(TRIES):
        found = l0_of(penalty)
        if abs(found - target) < apart:
            best, apart = penalty, abs(found - target)
        if apart <= CLOSE * target:
            break
        if found > target:
            denser = penalty, found
        else:
            sparser = penalty, found
        penalty = _between(denser, sparser, target, halve=attempt % 3 == 2)
    return best


def _between(
    denser: tuple[float, float] | None,
    sparser: tuple[float, float] | None,
    target: float | int,
    *,
    halve: bool,
) -> float:
    """The next penalty to try: outside what is known, or between by their L0, in logarithms."""
    if sparser is None:
        assert denser is not None
        return 2 * denser[0]
    if denser is None:
        return sparser[0] / 2
    share = 0.5
    if not halve:
        high, low, wanted = (math.log(value + 1e-3) for value in (denser[1], sparser[1], target))
        share = min(0.95, max(0.05, (high - wanted) / max(high - low, 1e-12)))
    return denser[0] ** (1 - share) * sparser[0] ** share
