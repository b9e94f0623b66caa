"""Quadratic forms l r^T and sums of them, by Gram matrices of their factors.

X_hat = sum_j g_j l_j r_j^T is a d x d matrix for every row. Its squared norm is g^T K g with the
kernel K = (L L^T) o (R R^T), where o multiplies entry by entry, so no such matrix is ever formed
(arXiv 2510.16820). The symmetric part of X_hat has the kernel K_s = ((L L^T) o (R R^T) + (L R^T) o
(R L^T)) / 2. If X is symmetric, the symmetric part is never further from X than X_hat itself. All
kernels here are computed in tiles.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

TILE = 2048
"""Latents on a side of a tile of the kernel."""
NUMBERS_AT_ONCE = 2**25
"""Factors gathered at once where rows have few active latents."""


@dataclass(frozen=True)
class Forms:
    """The quadratic forms x -> (l_j . x)(r_j . x), each with the matrix l_j r_j^T.

    Attributes:
        left, right: `[m d]`, the factors l_j and r_j.
        symmetric: whether a form's matrix is its symmetric part, (l_j r_j^T + r_j l_j^T) / 2.
        ordered: whether norms and products are means over all prefixes of the forms (j <= 1, ...,
            j <= m); then K_ij is weighted by the share of prefixes that hold both i and j.
    """

    left: Float[Tensor, "m d"]
    right: Float[Tensor, "m d"]
    symmetric: bool = True
    ordered: bool = False

    def __len__(self) -> int:
        return len(self.left)

    def share(self, start: int, stop: int) -> Float[Tensor, " n"]:
        """The share of prefixes that hold each form from `start` to `stop`; 1 if not ordered."""
        dtype = torch.promote_types(self.left.dtype, torch.float32)
        index = torch.arange(start, stop, device=self.left.device, dtype=dtype)
        return 1 - index / len(self) if self.ordered else torch.ones_like(index)

    def tile(self, rows: slice, columns: slice) -> "Tile":
        """The Gram matrices of some forms with others."""
        l_i, r_i = self.left[rows], self.right[rows]
        l_j, r_j = self.left[columns], self.right[columns]
        left, right = l_i @ l_j.T, r_i @ r_j.T
        if not self.symmetric:
            return Tile(left, right, None, None)
        return Tile(left, right, l_i @ r_j.T, r_i @ l_j.T)

    def weights(self, rows: slice, columns: slice) -> Float[Tensor, "i j"] | float:
        """The share of prefixes that hold both forms of each pair."""
        if not self.ordered:
            return 1.0
        shares = self.share(rows.start, rows.stop), self.share(columns.start, columns.stop)
        return torch.minimum(shares[0][:, None], shares[1][None])

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        """The tiles of the kernel on and above its diagonal."""
        parts = [slice(i, min(i + TILE, len(self))) for i in range(0, len(self), TILE)]
        for number, rows in enumerate(parts):
            for columns in parts[number:]:
                yield rows, columns

    def kernel(self, rows: slice) -> Float[Tensor, "i m"]:
        """<form i, form j> for some forms i and all j; unweighted."""
        return self.tile(rows, slice(0, len(self))).kernel

    def norms(self) -> Float[Tensor, " m"]:
        """The Frobenius norm of each form's matrix."""
        square = self.left.pow(2).sum(1) * self.right.pow(2).sum(1)
        if self.symmetric:
            square = (square + (self.left * self.right).sum(1).pow(2)) / 2
        return square.sqrt()


@dataclass(frozen=True)
class Tile:
    """Gram matrices L L^T, R R^T, and of symmetric forms L R^T and R L^T."""

    ll: Float[Tensor, "*n i j"]
    rr: Float[Tensor, "*n i j"]
    lr: Float[Tensor, "*n i j"] | None
    rl: Float[Tensor, "*n i j"] | None

    @property
    def kernel(self) -> Float[Tensor, "*n i j"]:
        """The inner products of the forms' matrices."""
        straight = self.ll * self.rr
        if self.lr is None or self.rl is None:
            return straight
        return (straight + self.lr * self.rl) / 2


def single(x: Tensor) -> Tensor:
    """In float32 at least; a product under autocast may have fewer bits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def square_norms(g: Float[Tensor, "n m"], forms: Forms) -> Float[Tensor, " n"]:
    """||sum_j g_j form_j||^2 of each row, without gradients."""
    total = g.new_zeros(len(g))
    for rows, columns in forms.tiles():
        kernel = forms.tile(rows, columns).kernel * forms.weights(rows, columns)
        part = ((g[:, rows] @ kernel) * g[:, columns]).sum(1)
        total += part if rows == columns else 2 * part
    return total


def mean_square_norm(g: Float[Tensor, "n m"], forms: Forms) -> Float[Tensor, ""]:
    """The mean over rows of ||sum_j g_j form_j||^2, differentiable in g and the factors.

    It costs about 3 m^2 (4 d + n) multiplications with gradients (symmetric forms), and memory for
    a few tiles.
    """
    found = _MeanSquareNorm.apply(g, forms.left, forms.right, forms.symmetric, forms.ordered)
    assert isinstance(found, Tensor)
    return found


class _MeanSquareNorm(torch.autograd.Function):
    """<K, S> with S = g^T g / n; one pass over the tiles gives the value and all gradients."""

    @staticmethod
    @override
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        g: Tensor,
        left: Tensor,
        right: Tensor,
        symmetric: bool,
        ordered: bool,
    ) -> Tensor:
        forms = Forms(left, right, symmetric, ordered)
        value, n = g.new_zeros(()), len(g)
        grads = tuple(torch.zeros_like(t) for t in (g, left, right))
        for rows, columns in forms.tiles():
            tile, weights = forms.tile(rows, columns), forms.weights(rows, columns)
            second = (g[:, rows].T @ g[:, columns]) * (weights / n)
            kernel = tile.kernel
            times = 1 if rows == columns else 2
            value += times * (kernel * second).sum()
            _add_gradients(grads, forms, (rows, columns), tile, second)
            kernel = kernel * (weights * 2 / n)
            grads[0][:, columns] += g[:, rows] @ kernel
            if rows != columns:
                grads[0][:, rows] += g[:, columns] @ kernel.T
        ctx.save_for_backward(*grads)
        return value

    @staticmethod
    @override
    # pyrefly: ignore[bad-override]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        return (*(grad * each for each in saved), None, None)


def _add_gradients(
    grads: tuple[Tensor, ...], forms: Forms, at: tuple[slice, slice], tile: Tile, second: Tensor
) -> None:
    """Add d<K, S>/dL and d<K, S>/dR of one tile, and of its mirror image."""
    _, on_left, on_right = grads
    by_left, by_right = second * tile.rr, second * tile.ll
    pairs = [(on_left, forms.left, by_left), (on_right, forms.right, by_right)]
    if tile.lr is None or tile.rl is None:
        for out, factor, by in pairs:
            _both(out, out, factor, factor, 2 * by, at)
        return
    for out, factor, by in pairs:
        _both(out, out, factor, factor, by, at)
    _both(on_left, on_right, forms.right, forms.left, second * tile.rl, at)
    _both(on_right, on_left, forms.left, forms.right, second * tile.lr, at)


def _both(
    out: Tensor,
    mirrored: Tensor,
    factor: Tensor,
    other: Tensor,
    by: Tensor,
    at: tuple[slice, slice],
) -> None:
    rows, columns = at
    out[rows] += by @ factor[columns]
    if rows != columns:
        mirrored[columns] += by.T @ other[rows]


def square_norms_of_few(
    values: Float[Tensor, "n k"], indices: Int[Tensor, "n k"], forms: Forms
) -> Float[Tensor, " n"]:
    """||sum_j g_j form_j||^2 of rows with k active forms each.

    It costs 4 n k^2 d multiplications, and no kernel of all forms.
    """
    parts = _few_rows(indices, forms)
    return torch.cat(
        [_square(values[at], indices[at], *_factors(indices[at], forms), forms) for at in parts]
    )


def fit_of_few(
    u: Float[Tensor, "n d"], indices: Int[Tensor, "n k"], forms: Forms
) -> tuple[Float[Tensor, "n k"], Float[Tensor, " n"]]:
    """The values of k given forms at each row, and ||sum_j value_j form_j||^2; differentiable.

    The gradient is that of the given forms alone, so it costs no product with all of them.
    """

    def part(u: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        left, right = _factors(indices, forms)
        values = single(((left @ u[:, :, None]) * (right @ u[:, :, None]))[:, :, 0])
        return values, _square(values, indices, left, right, forms)

    parts = _few_rows(indices, forms)
    if len(parts) == 1:
        return part(u, indices)
    # Gathered factors take n k d numbers, so backward gathers them again.
    found = [checkpoint(part, u[at], indices[at], use_reentrant=False) for at in parts]
    return torch.cat([values for values, _ in found]), torch.cat([square for _, square in found])


def _few_rows(indices: Int[Tensor, "n k"], forms: Forms) -> list[slice]:
    """Stretches of rows whose factors are gathered together."""
    n = max(1, NUMBERS_AT_ONCE // max(1, indices.shape[1] * forms.left.shape[1]))
    return [slice(at, at + n) for at in range(0, len(indices), n)]


def _factors(
    indices: Int[Tensor, "n k"], forms: Forms
) -> tuple[Float[Tensor, "n k d"], Float[Tensor, "n k d"]]:
    return F.embedding(indices, forms.left), F.embedding(indices, forms.right)


def _square(
    values: Float[Tensor, "n k"],
    indices: Int[Tensor, "n k"],
    left: Float[Tensor, "n k d"],
    right: Float[Tensor, "n k d"],
    forms: Forms,
) -> Float[Tensor, " n"]:
    cross = left @ right.mT if forms.symmetric else None
    kernel = Tile(
        left @ left.mT, right @ right.mT, cross, None if cross is None else cross.mT
    ).kernel
    if forms.ordered:
        share = forms.share(0, len(forms))[indices]
        kernel = kernel * torch.minimum(share[:, :, None], share[:, None, :])
    return ((kernel.to(values.dtype) @ values[:, :, None])[:, :, 0] * values).sum(1)


def mean_hoyer_density(f: Float[Tensor, "n m"], *, ordered: bool = False) -> Float[Tensor, ""]:
    """The mean over columns of their Hoyer density; `ordered`: the mean over all prefixes of it."""
    density = hoyer_density(f)
    if ordered:
        # The mean over p of (1/p) sum_{j <= p} h_j is the mean over j of h_j sum_{p >= j} 1/p.
        share = 1 / torch.arange(1, len(density) + 1, device=f.device, dtype=f.dtype)
        density = density * share.flip(0).cumsum(0).flip(0)
    return density.mean()


def hoyer_density(f: Float[Tensor, "n m"]) -> Float[Tensor, " m"]:
    """(||f_j||_1 / ||f_j||_2 - 1) / (sqrt(n) - 1) of each column over the n rows, in [0, 1].

    It is 0 if a latent fires in one row, 1 if it has the same magnitude in all rows; 0 if it never
    fires, or if there is one row.
    """
    ratio = f.norm(p=1, dim=0) / f.norm(dim=0).clamp_min(1e-12)
    fires = f.detach().abs().amax(dim=0) > 0
    return torch.where(fires, ratio - 1, 0.0) / max(len(f) ** 0.5 - 1, 1e-12)
