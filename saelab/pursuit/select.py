"""Selection rules: from pre-activations to the few latents that a row keeps."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.kernels.cuda import runs_batch_select, runs_select
from saelab.kernels.torch.zipf import ColumnBudgets
from saelab.shard import LatentShard
from saelab.types import SparseCodes

Rule = Callable[[Tensor, Any], SparseCodes]
"""From pre-activations and k to codes; k is whole where it counts a row's latents."""


def top_k(pre_acts: Float[Tensor, "batch d_sae"], k: int) -> SparseCodes:
    """The k largest pre-activations of each row, rectified (arXiv 2406.04093, eq. 3).

    A row with fewer than k positive pre-activations keeps zeros, which do not fire. Entries are
    sorted by falling value, so the first j of them are the codes for a budget of j.
    """
    if runs_select(pre_acts, k):
        return _by_kernel(pre_acts, k, by_magnitude=False)
    return _top_k(pre_acts, k)


def largest(pre_acts: Float[Tensor, "batch d_sae"], k: int) -> SparseCodes:
    """The k largest entries of each row unchanged, negative ones included (arXiv 1312.5663)."""
    values, indices = pre_acts.topk(k, dim=-1)
    return SparseCodes(values, indices, pre_acts.shape[-1])


def abs_top_k(pre_acts: Float[Tensor, "batch d_sae"], k: int) -> SparseCodes:
    """The k entries of largest magnitude in each row, signs kept (arXiv 2510.00404).

    This is the Euclidean projection of the row onto the vectors with at most k non-zeros.
    """
    if runs_select(pre_acts, k):
        return _by_kernel(pre_acts, k, by_magnitude=True)
    return _abs_top_k(pre_acts, k)


def batch_top_k(
    pre_acts: Float[Tensor, "batch d_sae"], k: float | int, *, signed: bool = False
) -> SparseCodes:
    """The `batch * k` largest pre-activations of the whole batch, rectified (arXiv 2412.06410).

    k latents per row on average; a row may have more, fewer, or none. `k` may be a fraction. With
    `signed`, the largest magnitudes with their signs (the batch-level form of arXiv 2510.00404).
    This is a rule for training only: the latents that a row keeps depend on the other rows.
    """
    batch, d_sae = pre_acts.shape
    flat = pre_acts.flatten()
    n = min(int(k * batch), flat.numel())
    if runs_batch_select(pre_acts, n):
        from saelab.kernels.triton.select.batch import select_batch_top_k

        found = select_batch_top_k(pre_acts.contiguous(), n, by_magnitude=signed)
        return SparseCodes(found.values, found.indices.long(), d_sae, found.offsets)
    chosen = (flat.abs() if signed else flat).topk(n, sorted=False).indices.sort().values
    values = flat[chosen] if signed else flat[chosen].relu()
    starts = torch.arange(batch, device=flat.device) * d_sae
    return SparseCodes(values, chosen % d_sae, d_sae, torch.searchsorted(chosen, starts))


def column_top_k(
    pre_acts: Float[Tensor, "batch d_sae"], ranked: Int[Tensor, " d_sae"], budgets: ColumnBudgets
) -> SparseCodes:
    """The budget's largest pre-activations of each latent, rectified (arXiv 2411.02124).

    The latent `ranked[r]` keeps `budgets.counts[r]` rows, those where it is largest; a row may have
    any number of latents, or none. Entries are sorted by row, then by latent. This is a rule for
    training only: the latents that a row keeps depend on the other rows.
    """
    batch, d_sae = pre_acts.shape
    if runs_batch_select(pre_acts, int(budgets.counts.sum())):
        from saelab.kernels.triton.select.columns import select_column_top_k

        found = select_column_top_k(pre_acts.contiguous(), ranked, budgets)
        return SparseCodes(found.values, found.indices.long(), d_sae, found.offsets)
    counts, places = budgets.counts.to(ranked.device), []
    for first, stop, most in budgets.classes:
        latents = ranked[first:stop]
        rows = pre_acts[:, latents].T.topk(most, dim=1).indices
        kept = torch.arange(most, device=rows.device) < counts[first:stop, None]
        places.append((rows * d_sae + latents[:, None])[kept])
    chosen = torch.cat(places).sort().values
    starts = torch.arange(batch, device=chosen.device) * d_sae
    values = pre_acts.flatten()[chosen].relu()
    return SparseCodes(values, chosen % d_sae, d_sae, torch.searchsorted(chosen, starts))


def above(
    pre_acts: Float[Tensor, "batch d_sae"],
    threshold: Float[Tensor, "*d_sae"],
    *,
    signed: bool = False,
) -> SparseCodes:
    """Every positive pre-activation above its threshold, unchanged (arXiv 2407.14435, eq. 5).

    `threshold` is one number, or one per latent. With `signed`, magnitudes are compared. The codes
    are rectangular, sorted by falling magnitude, and as wide as the fullest row.
    """
    size = pre_acts.abs() if signed else pre_acts.relu()
    size = torch.where(size > threshold, size, 0.0)
    width = int((size > 0).sum(dim=1).max())
    kept, indices = size.topk(width, dim=1)
    values = torch.where(kept > 0, pre_acts.gather(1, indices), 0.0)
    return SparseCodes(values, indices, pre_acts.shape[1])


def among(
    rule: Rule,
    pre_acts: Float[Tensor, "batch d_sae"],
    allowed: Bool[Tensor, " d_sae"],
    k: int,
    shard: LatentShard | None = None,
) -> SparseCodes:
    """`rule` restricted to the latents in `allowed`, at most k of each row.

    With `shard`, k of all processes' allowed latents.
    """
    # Only the allowed columns are read, so a few dead latents cost little.
    candidates = allowed.nonzero().squeeze(1)
    # A kernel would be compiled for every number of candidates.
    rule = _BY_TORCH.get(rule, rule)
    chosen = rule(pre_acts[:, candidates], min(k, len(candidates)))
    codes = SparseCodes(chosen.values, candidates[chosen.indices], pre_acts.shape[-1])
    return codes if shard is None else shard.largest_of_all(codes, k)


def nonzero(z: Float[Tensor, "batch d_sae"]) -> SparseCodes:
    """The non-zero entries of dense codes, as flat codes; differentiable in their values."""
    row, index = z.nonzero(as_tuple=True)
    starts = torch.arange(len(z), device=z.device)
    return SparseCodes(z[row, index], index, z.shape[1], torch.searchsorted(row, starts))


def below(codes: SparseCodes, limit: int, start: int = 0) -> SparseCodes:
    """The entries of latents from `start` to `limit` (excluded), as flat codes."""
    return codes.where((codes.indices >= start) & (codes.indices < limit))


def _top_k(pre_acts: Float[Tensor, "batch d_sae"], k: int) -> SparseCodes:
    values, indices = pre_acts.topk(k, dim=-1)
    return SparseCodes(values.relu(), indices, pre_acts.shape[-1])


def _abs_top_k(pre_acts: Float[Tensor, "batch d_sae"], k: int) -> SparseCodes:
    indices = pre_acts.abs().topk(k, dim=-1).indices
    return SparseCodes(pre_acts.gather(-1, indices), indices, pre_acts.shape[-1])


_BY_TORCH: dict[Rule, Rule] = {top_k: _top_k, abs_top_k: _abs_top_k}


def _by_kernel(
    pre_acts: Float[Tensor, "batch d_sae"], k: int, *, by_magnitude: bool
) -> SparseCodes:
    from saelab.kernels.triton.select.rows import select_top_k

    values, indices = select_top_k(
        pre_acts.contiguous(), k, by_magnitude=by_magnitude, rectify=not by_magnitude
    )
    return SparseCodes(values, indices.long(), pre_acts.shape[1])
