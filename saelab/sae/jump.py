"""JumpReLU's step: codes, L0, and straight-through gradients of thresholds (arXiv 2407.14435)."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from saelab.sae.batch_selection import density_threshold
from saelab.types import SparseCodes

INITIAL_THRESHOLD = 0.1
"""Initial thresholds without a target L0. With a target they start where the mean L0 is the
target."""
START_ROWS = 2048
IN_WINDOW = 4
"""At the start, this many times the target L0 exceed the window's lower edge in each row."""
WITHOUT_TARGET = 0.5
"""The bandwidth without a target L0: thresholds then do not start from the data."""


def start_of(
    pre_activations: Callable[[Tensor], Tensor], rows: Float[Tensor, "n d_in"], l0: float | int
) -> tuple[float, float]:
    """The threshold at which each row has this many latents on average, and the bandwidth.

    Starting with half of all latents active, training takes thousands of steps down to the target,
    and what it learns on the way is a dense code.
    """
    some = rows[:: -(-len(rows) // START_ROWS)]
    sizes = pre_activations(some).relu()
    start, edge = (
        float(density_threshold([sizes], round(n * len(some)))) for n in (l0, IN_WINDOW * l0)
    )
    return start, 2 * (start - edge) or WITHOUT_TARGET


def jump_codes(
    a: Float[Tensor, "batch d_sae"], threshold: Float[Tensor, " d_sae"], width: float
) -> SparseCodes:
    """What fires; and the zeros inside the window, by whose gradients thresholds can fall."""
    z: Tensor = Jump.apply(a, threshold, width)
    with torch.no_grad():
        row, index = ((z != 0) | (_window(a, threshold, width) > 0)).nonzero(as_tuple=True)
    starts = torch.searchsorted(row, torch.arange(len(a), device=a.device))
    return SparseCodes(z[row, index], index, a.shape[1], starts)


def _window(a: Tensor, threshold: Tensor, width: float) -> Tensor:
    """The rectangle kernel: 1 within half a width of the threshold."""
    return ((a - threshold).abs() < width / 2).to(a)


class Jump(torch.autograd.Function):
    """a * 1[a > threshold]; the threshold's gradient is estimated in a window (eq. 11)."""

    @staticmethod
    @override
    def forward(ctx: Any, a: Tensor, threshold: Tensor, width: float) -> Tensor:
        """The values."""
        ctx.save_for_backward(a, threshold)
        ctx.width = width
        return a * (a > threshold)

    @staticmethod
    @override
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """The gradient of a where a is on; of the threshold, -threshold/width inside the window."""
        a, threshold = ctx.saved_tensors
        (grad,) = grads
        near = _window(a, threshold, ctx.width)
        return grad * (a > threshold), -(threshold / ctx.width) * (near * grad).sum(0), None


class Heaviside(torch.autograd.Function):
    """1[a > threshold]; only the threshold has a gradient, estimated in a window (eq. 12)."""

    @staticmethod
    @override
    def forward(ctx: Any, a: Tensor, threshold: Tensor, width: float) -> Tensor:
        """The indicator."""
        ctx.save_for_backward(a, threshold)
        ctx.width = width
        return (a > threshold).to(a)

    @staticmethod
    @override
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        """The gradient of the threshold: -1/width inside the window."""
        a, threshold = ctx.saved_tensors
        (grad,) = grads
        return None, -(_window(a, threshold, ctx.width) * grad).sum(0) / ctx.width, None
