"""Greedy sparse coding in a fixed dictionary: one atom a step, then a refit of all chosen ones.

Sources: orthogonal matching pursuit, and the rules that follow from a LASSO objective
(arXiv 2303.00844): each step takes the atom whose coefficient lowers the objective most.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.config import UsageError
from saelab.types import SparseCodes

DEPENDENT = 1e-5
"""An atom adds nothing where its part outside the span of the chosen ones is shorter than this."""

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


class _Choice(NamedTuple):
    """What has been chosen so far, and an orthonormal basis of its span.

    Attributes:
        indices: the atom of each step.
        basis: a unit vector a step, orthogonal to those before; 0 where the row had stopped.
        mixing: what each atom has of each basis vector, so that atoms = mixing @ basis; the row of
            a step that took nothing is that of the identity.
    """

    indices: Int[Tensor, "batch k"]
    basis: Float[Tensor, "batch k d_in"]
    mixing: Float[Tensor, "batch k k"]


@torch.no_grad()
def orthogonal_pursuit(
    x: Float[Tensor, "batch d_in"],
    atoms: Float[Tensor, "d_sae d_in"],
    k: int,
    *,
    rule: str = "l0",
    penalty: float | int = 0.0,
    weights: Float[Tensor, " d_sae"] | None = None,
) -> SparseCodes:
    """At most `k` atoms for each row, and their least-squares coefficients, which may be negative.

    With penalty 0 each rule is orthogonal matching pursuit. With a penalty a row stops where no
    atom lowers the objective any more. A row also stops where all that is left lies in the span of
    what it chose. Entries stay in the order of choice, and unused ones have value 0.

    Args:
        x: rows, centred by the caller.
        atoms: rows of any norm but 0; coefficients are those of the atoms as given.
        k: the most atoms a row takes.
        rule: a key of `RULES`.
        penalty: lambda, in the units of the rule's objective with atoms of unit norm.
        weights: w, one a latent; 1 if not given. A larger one makes its latent dearer.

    Raises:
        UsageError: the rule is unknown, k or the penalty is out of range, or an atom is zero.
    """
    norms = _check(atoms, k, rule, penalty)
    dtype = torch.promote_types(torch.promote_types(x.dtype, atoms.dtype), torch.float32)
    unit, residual = (atoms / norms[:, None]).to(dtype), x.to(dtype, copy=True)
    w = torch.ones_like(norms, dtype=dtype) if weights is None else weights.to(dtype)
    cost = penalty * (w.square() if "l0" in rule else w)
    chosen = _Choice(
        torch.zeros(len(x), k, dtype=torch.long, device=x.device),
        residual.new_zeros(len(x), k, x.shape[1]),
        torch.eye(k, dtype=dtype, device=x.device).repeat(len(x), 1, 1),
    )
    free = torch.ones(len(x), len(atoms), dtype=torch.bool, device=x.device)
    running = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for step in range(k):
        gains = RULES[rule]((residual @ unit.T).abs(), residual.norm(dim=1, keepdim=True), cost)
        best = torch.where(free, gains, 0.0).max(dim=1)
        running = running & (best.values > 0)
        if not bool(running.any()):
            break
        running = _take(chosen, step, unit[best.indices], best.indices, residual, running)
        free.scatter_(1, best.indices[:, None], value=False)
    values = _coefficients(chosen, x.to(dtype)) / norms[chosen.indices]
    return SparseCodes(values, chosen.indices, len(atoms))


def _take(
    chosen: _Choice,
    step: int,
    atom: Float[Tensor, "batch d_in"],
    index: Int[Tensor, " batch"],
    residual: Float[Tensor, "batch d_in"],
    running: Bool[Tensor, " batch"],
) -> Bool[Tensor, " batch"]:
    """Add an atom to each running row and take its new direction off the residual, in place.

    Returns which rows go on.
    """
    basis, mixing = chosen.basis[:, :step], chosen.mixing
    direction, shares = atom.clone(), atom.new_zeros(len(atom), step)
    for _ in range(2):  # Once is not orthogonal enough where atoms are nearly dependent.
        share = torch.einsum("bkd,bd->bk", basis, direction)
        direction -= torch.einsum("bk,bkd->bd", share, basis)
        shares += share
    length = direction.norm(dim=1, keepdim=True)
    running = running & (length.squeeze(1) > DEPENDENT)
    on = running[:, None]
    direction = torch.where(on, direction / length, 0.0)
    chosen.basis[:, step] = direction
    chosen.indices[:, step] = torch.where(running, index, 0)
    mixing[:, step, :step] = torch.where(on, shares, 0.0)
    mixing[:, step, step] = torch.where(running, length.squeeze(1), 1.0)
    residual -= (residual * direction).sum(1, keepdim=True) * direction
    return running


def _coefficients(chosen: _Choice, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch k"]:
    """The least-squares coefficients of the chosen atoms: z mixing = x basis^T."""
    onto = torch.einsum("bkd,bd->bk", chosen.basis, x)
    return torch.linalg.solve_triangular(
        chosen.mixing.transpose(1, 2), onto[:, :, None], upper=True
    ).squeeze(2)


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
