"""What each kernel computes, in dense torch; the fast versions are tested against this."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.types import SparseCodes


def sparse_decode(
    codes: SparseCodes, W_dec: Float[Tensor, "d_sae d_out"]
) -> Float[Tensor, "batch d_out"]:
    """`z @ W_dec` with dense z: `batch * d_sae` numbers and a dense product."""
    return codes.dense() @ W_dec


def select_top_k(
    pre_acts: Float[Tensor, "batch d_sae"],
    k: int,
    *,
    by_magnitude: bool = False,
    rectify: bool = False,
) -> tuple[Float[Tensor, "batch k"], Int[Tensor, "batch k"]]:
    """The first k of a stable sort of each row: by falling value, equal values by index."""
    size = pre_acts.abs() if by_magnitude else pre_acts
    # Adding zero makes -0 equal to +0.
    order = torch.sort(size.float() + 0.0, dim=1, descending=True, stable=True).indices[:, :k]
    values = pre_acts.gather(1, order)
    return values.relu() if rectify else values, order.to(torch.int32)


def select_column_top_k(
    pre_acts: Float[Tensor, "batch d_sae"], counts: Int[Tensor, " d_sae"]
) -> Float[Tensor, "batch d_sae"]:
    """Each column's first `counts[j]` of a stable sort by falling value, rectified; zeros else."""
    order = torch.sort(pre_acts.float() + 0.0, dim=0, descending=True, stable=True).indices
    places = torch.arange(len(pre_acts), device=order.device)[:, None].expand_as(order)
    rank = torch.empty_like(order).scatter_(0, order, places)
    return torch.where(rank < counts, pre_acts, 0.0).relu()


def decode_residual(
    x: Float[Tensor, "batch d_in"],
    codes: SparseCodes,
    W: Float[Tensor, "d_sae d_in"],
    bias: Float[Tensor, " d_in"],
    factor: float,
) -> tuple[Float[Tensor, "batch d_in"], Float[Tensor, "batch k"]]:
    """x_hat - x, and the gradient of `factor / 2 * ||x_hat - x||^2` by every code."""
    residual = codes.dense() @ W + bias - x
    return residual, factor * (residual @ W.T).gather(1, codes.indices.long())


def sum_by_latent(codes: SparseCodes, rows: Float[Tensor, "batch d"]) -> Float[Tensor, "d_sae d"]:
    """`z^T @ rows`."""
    return codes.dense().T @ rows


def adam(
    value: Float[Tensor, "*shape"],
    gradient: Float[Tensor, "*shape"],
    moments: tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]],
    step: int,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
) -> tuple[Tensor, Tensor, Tensor]:
    """The value and both moments after step `step` (from 1) of Adam, eps 1e-8 (arXiv 1412.6980)."""
    m = betas[0] * moments[0] + (1 - betas[0]) * gradient
    v = betas[1] * moments[1] + (1 - betas[1]) * gradient**2
    m_hat, v_hat = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
    return value - lr * m_hat / (v_hat.sqrt() + 1e-8), m, v
