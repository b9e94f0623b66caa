"""The rows' squared distances from a point, which a training's FVU divides by."""

from jaxtyping import Float
from torch import Tensor

from saelab.kernels.cuda import runs_triton


def squared_distance(
    rows: Float[Tensor, "row d_in"], point: Float[Tensor, " d_in"]
) -> Float[Tensor, ""]:
    """The sum of ||row - point||^2; on a GPU one read of the rows, and without a graph."""
    if runs_triton(rows):
        from saelab.kernels.triton.distance import squared_distance_

        return squared_distance_(rows, point)
    return (rows - point).pow(2).sum()
