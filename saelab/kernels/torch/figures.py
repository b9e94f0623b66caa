"""What a training reports of a step: sums that are added to those of the steps before."""

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.kernels.cuda import runs_triton


def add_figures_(
    sums: Float[Tensor, " 4"],
    rows: Float[Tensor, "row d_in"],
    point: Float[Tensor, " d_in"],
    values: Float[Tensor, "*entry"],
    mse_sum: Float[Tensor, ""],
    loss: Float[Tensor, ""],
) -> None:
    """Add a step's figures; on a GPU by two kernels, without a graph.

    They are `mse_sum` of each of the rows, the sum of ||row - point||^2, the number of values that
    are not zero, and the loss.
    """
    if runs_triton(rows) and runs_triton(values):
        from saelab.kernels.triton.figures import add_by_kernels_

        add_by_kernels_(sums, rows, point, values, mse_sum, loss)
    else:
        distance = (rows - point).pow(2).sum()
        found = mse_sum * len(rows), distance, values.count_nonzero(), loss
        sums += torch.stack([each.double() for each in found])
