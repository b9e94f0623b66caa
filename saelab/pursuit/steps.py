"""The ways to take a pursuit's steps: by torch, or by kernels; with a Gram matrix, or without."""

from collections.abc import Callable
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.kernels.cuda import runs_triton
from saelab.kernels.sizes import gram_pays

GRAM_LIMIT_BYTES = 2**30
"""The largest Gram matrix that a pursuit keeps: d_sae=16384 in float32.

The cost of building it grows as d_sae^2 too, so where it is larger it rarely pays.
"""

GRAM_UPDATE_COST = 64
"""Multiply-adds of a matrix product that take as long as updating one correlation, which waits for
memory: fitted to timings on one CPU core, so below d_in=64 the Gram matrix never pays.
"""

CHECK_EVERY = 4
"""Steps between two checks whether every row has stopped, each of which waits for the device."""

Codes = tuple[Float[Tensor, "batch n_steps"], Int[Tensor, "batch n_steps"]]


class PursuitTask(NamedTuple):
    """What a way of pursuing is given, and fills.

    Attributes:
        residual: the rows; what the steps take leaves it.
        atoms: of unit norm, in the same type.
        codes: zeros, for the steps' values and indices.
        threshold: rows of at most this norm take nothing; 0 for no limit.
        coarse: the type of the products by which atoms are chosen.
    """

    residual: Float[Tensor, "batch d_in"]
    atoms: Float[Tensor, "d_sae d_in"]
    codes: Codes
    threshold: float | int
    coarse: torch.dtype


def fastest_pursuit(task: PursuitTask) -> Callable[[PursuitTask], int]:
    """The fastest of the ways that follow; each returns how many steps were taken."""
    x, atoms, (values, _), _, coarse = task
    n_steps = values.shape[1]
    if not runs_triton(x):
        return _pursue
    rounds = coarse != atoms.dtype
    if gram_pays(len(x), len(atoms), n_steps, rounds=rounds):
        return _pursue_on_chip
    return _pursue_by_kernels if rounds or not _gram_saves(len(x), atoms, n_steps) else _pursue


def _pursue(task: PursuitTask) -> int:
    """Take the steps in place, write the codes, and return how many steps were taken."""
    residual, atoms, (values, indices), threshold, coarse = task
    n_steps = values.shape[1]
    correlations = _Correlations(residual, atoms, n_steps, coarse)
    taken = 0
    while taken < n_steps:
        chosen = correlations.values.max(dim=1).indices
        indices[:, taken] = chosen
        c = _subtract(residual, atoms[chosen], threshold)
        values[:, taken] = c.squeeze(1)
        taken += 1
        if taken % CHECK_EVERY == 0 and not bool(c.any()):
            break
        if taken < n_steps:
            correlations.update(residual, c, chosen)
    return taken


def _pursue_by_kernels(task: PursuitTask) -> int:
    """The same on a GPU, where a step is a product and two kernels."""
    from saelab.kernels.triton.pursuit.steps import take_step

    residual, atoms, codes, threshold, coarse = task
    values = codes[0]
    n_steps = values.shape[1]
    atoms, by_row = atoms.contiguous(), atoms.to(coarse)
    rest = residual.to(coarse, copy=True)
    correlations = rest.new_empty(len(rest), len(atoms))
    taken = 0
    while taken < n_steps:
        torch.matmul(rest, by_row.T, out=correlations)
        take_step(correlations, atoms, residual, rest, codes, taken, threshold)
        taken += 1
        if taken % CHECK_EVERY == 0 and not bool(values[:, taken - 1].any()):
            break
    return taken


def _pursue_on_chip(task: PursuitTask) -> int:
    """All steps by one kernel a row, which keeps the row's correlations, by the Gram matrix."""
    from saelab.kernels.triton.pursuit.gram import pursue_rows

    atoms = task.atoms.contiguous()
    rounded = atoms if task.coarse == atoms.dtype else atoms.half()
    pursue_rows(task.residual, atoms, rounded, task.codes, task.threshold)
    return task.codes[0].shape[1]


def _subtract(
    residual: Float[Tensor, "batch d_in"],
    w: Float[Tensor, "batch d_in"],
    threshold: float | int,
) -> Float[Tensor, "batch 1"]:
    """Take each row's atom out of `residual`, in place, and return how much of it there was."""
    c = (residual * w).sum(1, keepdim=True).relu()
    if threshold > 0:
        c = c.masked_fill(residual.norm(dim=1, keepdim=True) <= threshold, 0)
    residual.addcmul_(c, w, value=-1)
    return c


@final
class _Correlations:
    """<r, w_j> for every atom, kept up to date while r shrinks; good enough to choose atoms by."""

    def __init__(
        self,
        x: Float[Tensor, "batch d_in"],
        atoms: Float[Tensor, "d_sae d_in"],
        n_steps: int,
        coarse: torch.dtype,
    ) -> None:
        self._atoms = atoms.to(coarse)
        self.values = x.to(coarse) @ self._atoms.T
        self._gram = self._rows = None
        # In a coarse type the update's rounding would add up over the steps.
        if coarse == atoms.dtype and _gram_saves(len(x), atoms, n_steps):
            self._gram = atoms @ atoms.T
            # Allocated once: on a CPU, fresh memory costs more than what is written to it.
            self._rows = torch.empty_like(self.values)

    def update(
        self,
        residual: Float[Tensor, "batch d_in"],
        c: Float[Tensor, "batch 1"],
        chosen: Int[Tensor, " batch"],
    ) -> None:
        """Follow one step: `c` times the `chosen` atoms has left, `residual` remains."""
        if self._gram is None:
            torch.matmul(residual.to(self._atoms.dtype), self._atoms.T, out=self.values)
        else:
            rows = torch.index_select(self._gram, 0, chosen, out=self._rows)
            self.values.addcmul_(c, rows, value=-1)


def _gram_saves(batch: int, atoms: Float[Tensor, "d_sae d_in"], n_steps: int) -> bool:
    d_sae, d_in = atoms.shape
    return gram_saves(batch, d_sae, d_in, n_steps, atoms.element_size())


def gram_saves(batch: int, d_sae: int, d_in: int, n_steps: int, size: int = 4) -> bool:
    """Whether torch updates correlations by the Gram matrix faster than it computes them anew.

    Building it costs `d_sae * d_in` multiply-adds an atom; a row and step saves what the update is
    cheaper by. A number has `size` bytes.
    """
    fits = d_sae**2 * size <= GRAM_LIMIT_BYTES
    saved = (n_steps - 1) * batch * (d_in - GRAM_UPDATE_COST)
    return fits and d_sae * d_in <= saved
