"""Sparse coding in a fixed dictionary by minimising ||x - z A||^2 / 2 plus a penalty on z.

Sources: FISTA (Beck and Teboulle 2009), for the LASSO and beyond; the hard, half and CEL0
thresholds, which shrink large coefficients less than l1 does, as compared in arXiv 2301.10002.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.config import UsageError
from saelab.pursuit.select import nonzero
from saelab.types import SparseCodes

MARGIN = 0.99
"""Share of the largest step that is taken: at 1, CEL0's threshold divides by 0 for some atoms."""

CHECK_EVERY = 10
"""Steps between two checks which rows are done."""

Threshold = Callable[
    [Float[Tensor, "*rows d_sae"], Float[Tensor, ""], Float[Tensor, " d_sae"]],
    Float[Tensor, "*rows d_sae"],
]
"""The minimiser z of (z - u)^2 / 2 + step * penalty(z), from u, step * lambda and
step * ||atom||^2."""


def soft(u: Tensor, lam: Tensor, _: Tensor) -> Tensor:
    """For |z|: every coefficient shrinks by lambda."""
    return u.sign() * (u.abs() - lam).clamp_min(0)


def hard(u: Tensor, lam: Tensor, _: Tensor) -> Tensor:
    """For the number of non-zeros: those above sqrt(2 lambda) stay as they are."""
    return torch.where(u.abs() > (2 * lam).sqrt(), u, 0.0)


def half(u: Tensor, lam: Tensor, _: Tensor) -> Tensor:
    """For sqrt(|z|): between the two."""
    size, lam = u.abs(), 2 * lam  # The closed form is that of (z - u)^2 + lambda sqrt(|z|).
    angle = (lam / 8 * (size / 3).clamp_min(1e-30).pow(-1.5)).clamp_max(1).acos()
    kept = u * 2 / 3 * (1 + (2 * math.pi / 3 - 2 / 3 * angle).cos())
    return torch.where(size > 54 ** (1 / 3) / 4 * lam.pow(2 / 3), kept, 0.0)


def cel0(u: Tensor, lam: Tensor, curvature: Tensor) -> Tensor:
    """For the tightest continuous bound of the l0 objective: shrinks less the larger |u|."""
    size = u.abs()
    rising = (size - (2 * lam * curvature).sqrt()).clamp_min(0) / (1 - curvature)
    return u.sign() * torch.minimum(size, rising)


THRESHOLDS: dict[str, Threshold] = {"l1": soft, "l0": hard, "half": half, "cel0": cel0}
"""The threshold of each penalty."""


@dataclass(frozen=True)
class Stop:
    """When `minimise` stops.

    Attributes:
        tolerance: l1: the duality gap as a share of ||x||^2 / 2. Otherwise: the largest move of a
            step as a share of the largest coefficient.
        max_steps: the most steps.
    """

    tolerance: float = 1e-6
    max_steps: int = 2000


@dataclass(frozen=True)
class Minimum:
    """What `minimise` found.

    Attributes:
        codes: the coefficients.
        objective: of each row, at these.
        gap: l1 only: by how much a row's objective may at most be above the minimum, as a share of
            ||x||^2 / 2, the largest over the rows; None for penalties that are not convex.
        n_steps: steps taken.
    """

    codes: SparseCodes
    objective: Float[Tensor, " batch"]
    gap: float | None
    n_steps: int


@torch.no_grad()
def minimise(
    x: Float[Tensor, "batch d_in"],
    atoms: Float[Tensor, "d_sae d_in"],
    penalty: float | int,
    *,
    kind: str = "l1",
    nonnegative: bool = False,
    stop: Stop = Stop(),
) -> Minimum:
    """Coefficients that minimise ||x - z A||^2 / 2 + penalty(z), row by row.

    Proximal steps from z = 0 with momentum, which a row drops where it points uphill. l1 is convex:
    a row is done where the duality gap proves that it is near its minimum. The other penalties are
    not convex: it is done where a step moves nothing any more, at a point that no small change
    improves. Rows that are done take no further steps.

    Costs `batch * d_sae` numbers eight times over: give it rows in parts.

    Args:
        x: rows, centred by the caller.
        atoms: rows of any norm.
        penalty: lambda > 0.
        kind: l1 (lambda |z|), l0 (lambda per non-zero), half (lambda sqrt|z|) or cel0.
        nonnegative: only coefficients >= 0, as those of most SAEs.
        stop: how exact the minimum must be, and after how many steps it may be given up.

    Raises:
        UsageError: the kind is unknown, or the penalty is not positive.
    """
    if kind not in THRESHOLDS:
        raise UsageError(f"{kind!r} is no penalty; there are {', '.join(THRESHOLDS)}.")
    if not penalty > 0:
        raise UsageError(f"penalty={penalty} is not positive; without one, codes are not sparse.")
    dtype = torch.promote_types(torch.promote_types(x.dtype, atoms.dtype), torch.float32)
    x, atoms = x.to(dtype), atoms.to(dtype)
    problem = _Problem(atoms, float(penalty), kind, nonnegative, MARGIN / _curvature(atoms))
    z, gap, taken = problem.solve(x, stop)
    return Minimum(nonzero(z), problem.objective(x, z), gap, taken)


def _curvature(atoms: Float[Tensor, "d_sae d_in"]) -> float:
    """The largest eigenvalue of A A^T, from the smaller of the two Gram matrices."""
    gram = atoms.T @ atoms if len(atoms) > atoms.shape[1] else atoms @ atoms.T
    return float(torch.linalg.eigvalsh(gram.double())[-1])


@dataclass(frozen=True)
class _Problem:
    atoms: Float[Tensor, "d_sae d_in"]
    penalty: float
    kind: str
    nonnegative: bool
    step: float

    def solve(
        self, x: Float[Tensor, "batch d_in"], stop: Stop
    ) -> tuple[Float[Tensor, "batch d_sae"], float | None, int]:
        """The coefficients, the largest gap (l1) and the number of steps."""
        convex, found = self.kind == "l1", x.new_zeros(len(x), len(self.atoms))
        gaps, rows = x.new_zeros(len(x)), torch.arange(len(x), device=x.device)
        z, taken = found, 0
        ahead, momentum = z, x.new_ones(len(z), 1)
        for taken in range(1, stop.max_steps + 1):
            before, start, z = z, ahead, self.after(x, ahead)
            ahead, momentum = _accelerated(before, z, start, momentum)
            if taken % CHECK_EVERY and taken < stop.max_steps:
                continue
            left = self.gap(x, z) if convex else _moved(start, z)
            found[rows], gaps[rows] = z, left
            on = left > stop.tolerance
            if not bool(on.any()):
                break
            rows, x, z, ahead, momentum = (t[on] for t in (rows, x, z, ahead, momentum))
        return found, float(gaps.max()) if convex else None, taken

    def after(
        self, x: Float[Tensor, "batch d_in"], z: Float[Tensor, "batch d_sae"]
    ) -> Float[Tensor, "batch d_sae"]:
        """One proximal step from z."""
        u = torch.addmm(z, x - z @ self.atoms, self.atoms.T, alpha=self.step)
        if self.nonnegative:
            u = u.clamp_min_(0)
        lam = u.new_tensor(self.step * self.penalty)
        return THRESHOLDS[self.kind](u, lam, self.step * self.atoms.square().sum(1))

    def objective(
        self, x: Float[Tensor, "batch d_in"], z: Float[Tensor, "batch d_sae"]
    ) -> Float[Tensor, " batch"]:
        size, norms = z.abs(), self.atoms.norm(dim=1)
        match self.kind:
            case "l1":
                cost = self.penalty * size
            case "l0":
                cost = self.penalty * (z != 0)
            case "half":
                cost = self.penalty * size.sqrt()
            case _:
                short = ((2 * self.penalty) ** 0.5 - norms * size).clamp_min(0)
                cost = self.penalty - short.square() / 2
        return (x - z @ self.atoms).square().sum(1) / 2 + cost.sum(1)

    def gap(
        self, x: Float[Tensor, "batch d_in"], z: Float[Tensor, "batch d_sae"]
    ) -> Float[Tensor, " batch"]:
        """The duality gap of l1, as a share of ||x||^2 / 2."""
        rest = x - z @ self.atoms
        c = rest @ self.atoms.T
        most = (c if self.nonnegative else c.abs()).amax(1, keepdim=True)
        dual = rest * (self.penalty / most.clamp_min(1e-30)).clamp_max(1)
        bound = x.square().sum(1) / 2 - (x - dual).square().sum(1) / 2
        whole = (x.square().sum(1) / 2).clamp_min(torch.finfo(z.dtype).tiny)
        return (self.objective(x, z) - bound) / whole


def _accelerated(
    before: Float[Tensor, "batch d_sae"],
    z: Float[Tensor, "batch d_sae"],
    ahead: Float[Tensor, "batch d_sae"],
    momentum: Float[Tensor, "batch 1"],
) -> tuple[Float[Tensor, "batch d_sae"], Float[Tensor, "batch 1"]]:
    """FISTA's next point and momentum, after a step from `ahead` to z."""
    moved = z - before
    # A row whose momentum points uphill begins anew (O'Donoghue and Candes 2015).
    uphill = ((ahead - z) * moved).sum(1, keepdim=True) > 0
    momentum = torch.where(uphill, 1.0, momentum)
    larger = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
    return z + (momentum - 1) / larger * moved, larger


def _moved(
    before: Float[Tensor, "batch d_sae"], z: Float[Tensor, "batch d_sae"]
) -> Float[Tensor, " batch"]:
    """The largest move of each row as a share of its largest coefficient; 0 if it stays at 0."""
    most = z.abs().amax(1)
    return (z - before).abs().amax(1) / most.clamp_min(torch.finfo(z.dtype).tiny)
