"""Greedy sparse coding in a fixed dictionary: one atom a step, then a refit of all chosen ones.

Sources: orthogonal matching pursuit, and the rules that follow from a LASSO objective
(arXiv 2303.00844): each step takes the atom whose coefficient lowers the objective most. The
paper's rules for the least absolute deviation are not here: a step of theirs sorts every atom's
coordinates for every row. Non-negative coefficients are those of the active-set method of Lawson
and Hanson (1974), stopped after k atoms.
"""

from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from saelab.config import UsageError
from saelab.types import SparseCodes

DEPENDENT = 1e-5
"""An atom adds nothing where its part outside the span of the chosen ones is shorter than this."""
EXCHANGES = 2
"""With non-negative coefficients a row takes at most so many times k steps: atoms leave again."""

Gain = Callable[
    [Float[Tensor, "batch d_sae"], Float[Tensor, "batch 1"], Float[Tensor, " d_sae"]],
    Float[Tensor, "batch d_sae"],
]
"""From |correlations| c, the residual's norm n and lambda w (l1) or lambda w^2 (l0): what each atom
would take off the objective."""


def _l0(c: Tensor, _: Tensor, penalty: Tensor) -> Tensor:
    return (c.square() - penalty).clamp_min(0)


def _l1(c: Tensor, _: Tensor, penalty: Tensor) -> Tensor:
    return (c - penalty / 2).clamp_min(0).square()


def _l0_sqrt(c: Tensor, n: Tensor, penalty: Tensor) -> Tensor:
    rest = (n.square() - c.square()).clamp_min(0).sqrt()
    return (n - rest - penalty).clamp_min(0)


def _l1_sqrt(c: Tensor, n: Tensor, penalty: Tensor) -> Tensor:
    rest = (n.square() - c.square()).clamp_min(0).sqrt()
    gain = n - penalty * c - (1 - penalty.square()).clamp_min(0).sqrt() * rest
    # Elsewhere the best coefficient is 0, and the formula gives a gain that is none.
    return torch.where(c > penalty * n, gain, 0.0)


RULES: dict[str, Gain] = {"l0": _l0, "l1": _l1, "sqrt-l0": _l0_sqrt, "sqrt-l1": _l1_sqrt}
"""Each objective's gain (arXiv 2303.00844). l0 and l1 penalise ||x - z A||^2, the other two its
square root, whose best penalty does not depend on the noise."""


@torch.no_grad()
def orthogonal_pursuit(  # noqa: PLR0913 - three of them are the objective
    x: Float[Tensor, "batch d_in"],
    atoms: Float[Tensor, "d_sae d_in"],
    k: int | Int[Tensor, " batch"],
    *,
    rule: str = "l0",
    penalty: float | int = 0.0,
    weights: Float[Tensor, " d_sae"] | None = None,
    nonnegative: bool = False,
) -> SparseCodes:
    """At most `k` atoms for each row, and their least-squares coefficients.

    With penalty 0 each rule is orthogonal matching pursuit. With a penalty a row stops where no
    atom lowers the objective any more. A row also stops where all that is left lies in the span of
    what it chose. Unused entries have value 0; the others are in the order of choice, unless
    `nonnegative`.

    It costs a product of the rows and all atoms for every step, and beside that `batch * k * (k +
    d_in)` numbers of float64: give it rows in parts.

    Args:
        x: rows, centred by the caller.
        atoms: rows of any norm but 0; coefficients are those of the atoms as given.
        k: the most atoms a row takes; one number, or one a row, which may be 0.
        rule: a key of `RULES`.
        penalty: lambda, in the units of the rule's objective with atoms of unit norm.
        weights: w, one a latent; 1 if not given. A larger one makes its latent dearer.
        nonnegative: only coefficients > 0, as those of most SAEs: a row takes atoms that correlate
            with what is left, and gives up those whose coefficient would become negative.

    Raises:
        UsageError: the rule is unknown, k or the penalty is out of range, or an atom is zero.
    """
    limit = torch.as_tensor(k, device=x.device).expand(len(x))
    k = int(limit.max())
    norms = _check(atoms, k, rule, penalty)
    dtype = torch.promote_types(torch.promote_types(x.dtype, atoms.dtype), torch.float32)
    unit, x = (atoms / norms[:, None]).to(dtype), x.to(dtype)
    w = torch.ones_like(norms, dtype=dtype) if weights is None else weights.to(dtype)
    cost = penalty * (w.square() if "l0" in rule else w)
    fit, residual = _ChosenAtoms(x, unit, k), x.clone()
    rows = (limit > 0).nonzero().squeeze(1)
    for _ in range(EXCHANGES * k if nonnegative else k):
        left = residual[rows]
        c = left @ unit.T
        c = c.clamp_min(0) if nonnegative else c.abs()
        gains = RULES[rule](c, left.norm(dim=1, keepdim=True), cost)
        best = fit.without_chosen(gains, rows).max(dim=1)
        goes_on = best.values > 0
        rows, index = rows[goes_on], best.indices[goes_on]
        rows = rows[fit.add(rows, index)]
        if not len(rows):
            break
        residual[rows] = x[rows] - fit.solve(rows, nonnegative=nonnegative)
        rows = rows[fit.on[rows].sum(dim=1) < limit[rows]]
    values = torch.where(fit.on, fit.values, 0.0).to(dtype) / norms[fit.indices]
    return SparseCodes(values, fit.indices, len(atoms))


@final
class _ChosenAtoms:
    """The atoms that each row has chosen, and their least-squares coefficients, in float64.

    Attributes:
        indices: the atoms, one a slot.
        on: the slots in use.
        values: coefficients of the unit atoms.
        gram: the chosen atoms' inner products; a free slot has the row and column of the identity.
        onto: the chosen atoms' inner products with the row; 0 in free slots.
    """

    def __init__(
        self, x: Float[Tensor, "batch d_in"], unit: Float[Tensor, "d_sae d_in"], k: int
    ) -> None:
        self._x, self._unit, self._used = x, unit, 0
        self.indices = torch.zeros(len(x), k, dtype=torch.long, device=x.device)
        self.on = torch.zeros_like(self.indices, dtype=torch.bool)
        self.values = torch.zeros(len(x), k, dtype=torch.float64, device=x.device)
        self.onto = torch.zeros_like(self.values)
        self.gram = torch.eye(k, dtype=torch.float64, device=x.device).repeat(len(x), 1, 1)

    def without_chosen(
        self, gains: Float[Tensor, "n d_sae"], rows: Int[Tensor, " n"]
    ) -> Float[Tensor, "n d_sae"]:
        """The gains, in place, with 0 for the atoms that a row has."""
        row, slot = self.on[rows].nonzero(as_tuple=True)
        gains[row, self.indices[rows[row], slot]] = 0
        return gains

    def add(self, rows: Int[Tensor, " n"], index: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """Put an atom into a free slot of each row, unless the row's atoms already span it.

        Returns in which rows it did.
        """
        if not len(rows):
            return rows.bool()
        atom, on, used = self._unit[index].double(), self.on[rows], self._used
        near = torch.zeros_like(self.values[rows])
        near[:, :used] = (
            torch.einsum("nkd,nd->nk", self._chosen(rows).double(), atom) * on[:, :used]
        )
        spanned = (near * self._solved(rows, near)).sum(1)
        new = 1 - spanned > DEPENDENT**2
        rows, near, index = rows[new], near[new], index[new]
        slot = (~on[new]).int().argmax(1)
        near.scatter_(1, slot[:, None], 1.0)
        self.gram[rows, slot], self.gram[rows, :, slot] = near, near
        self.onto[rows, slot] = (self._x[rows].double() * atom[new]).sum(1)
        self.indices[rows, slot], self.on[rows, slot] = index, True
        self.values[rows, slot] = 0
        self._used = max(used, int(slot.max()) + 1) if len(slot) else used
        return new

    def solve(self, rows: Int[Tensor, " n"], *, nonnegative: bool) -> Float[Tensor, "n d_in"]:
        """Refit these rows and return what their atoms make."""
        todo = rows
        while len(todo):
            before, after = self.values[todo], self._solved(todo, self.onto[todo])
            below = self.on[todo] & (after <= 0)
            if not nonnegative or not bool(below.any()):
                self.values[todo] = after
                break
            # As far towards the minimum as all coefficients stay >= 0; those that reach 0 leave.
            share = torch.where(below, before / (before - after).clamp_min(1e-300), torch.inf)
            far = share.amin(dim=1, keepdim=True).clamp_max(1)
            self.values[todo] = before + far * (after - before)
            self._free(todo, below & (share <= far))
            todo = todo[below.any(dim=1)]
        made = self.values[rows, None, : self._used].to(self._x.dtype) @ self._chosen(rows)
        return made.squeeze(1)

    def _chosen(self, rows: Int[Tensor, " n"]) -> Float[Tensor, "n used d_in"]:
        return self._unit[self.indices[rows, : self._used]]

    def _solved(
        self, rows: Int[Tensor, " n"], right: Float64[Tensor, "n k"]
    ) -> Float64[Tensor, "n k"]:
        factor = torch.linalg.cholesky_ex(self.gram[rows]).L
        return torch.cholesky_solve(right[:, :, None], factor).squeeze(2)

    def _free(self, rows: Int[Tensor, " n"], which: Bool[Tensor, "n k"]) -> None:
        row, slot = which.nonzero(as_tuple=True)
        row = rows[row]
        self.on[row, slot] = False
        self.values[row, slot] = self.onto[row, slot] = 0
        self.gram[row, slot] = self.gram[row, :, slot] = 0
        self.gram[row, slot, slot] = 1


def _check(
    atoms: Float[Tensor, "d_sae d_in"], k: int, rule: str, penalty: float | int
) -> Float[Tensor, " d_sae"]:
    if rule not in RULES:
        raise UsageError(f"{rule!r} is no rule of choice; there are {', '.join(RULES)}.")
    if not 0 < k <= len(atoms):
        raise UsageError(f"k={k} is outside 1..{len(atoms)}, the number of atoms.")
    if not penalty >= 0:
        raise UsageError(f"penalty={penalty} is negative; take 0 or more.")
    norms = atoms.norm(dim=1)
    if not bool((norms > 0).all()):
        first = int((norms > 0).logical_not().nonzero()[0])
        raise UsageError(f"Atom {first} is zero or not a number, and has no direction.")
    return norms
