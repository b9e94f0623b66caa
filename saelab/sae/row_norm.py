"""What is done to each row before an SAE reads it, and undone in what it reconstructs.

With m(x) and s(x) of a row x, an SAE f of normalised rows reconstructs

    x_hat = s(x) f((x - m(x)) / t(x)) + m(x).

No change of weights can express this, since s differs between rows. Centring alone could be folded
into an encoder, but not into what is reconstructed.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

RowNorm = Literal["centre", "layer-norm", "unit-norm"]
EPSILON = 1e-5
"""Added to the standard deviation by which a layer norm divides, as OpenAI and SAELens do."""
TOLD: dict[RowNorm, str] = {
    "centre": "each row that the SAE reads loses its mean over the coordinates, and what it "
    "reconstructs gets it back",
    "layer-norm": "each row that the SAE reads is centred and divided by its standard deviation, "
    "which is undone in what it reconstructs; codes are in units of the row, the original tool's "
    "code times that standard deviation",
    "unit-norm": "each row that the SAE reads is scaled to the norm sqrt(d_in), which is undone in "
    "what it reconstructs; codes are in units of the row, the original tool's code divided by that "
    "scale",
}
"""What a user must know, as half a sentence."""


class RowScale(NamedTuple):
    """m, s and t of rows, each `[batch 1]`."""

    mean: Float[Tensor, "batch 1"]
    scale: Float[Tensor, "batch 1"]
    divisor: Float[Tensor, "batch 1"]

    def normalised(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """What the SAE reads of these rows."""
        return (x - self.mean) / self.divisor

    def undone(self, x_hat: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """The reconstruction of the rows, from that of the normalised ones."""
        return x_hat * self.scale + self.mean


def row_scale(norm: RowNorm, x: Float[Tensor, "batch d"]) -> RowScale:
    """The numbers of each row.

    A layer norm takes the standard deviation with d - 1 in the denominator, divides by it plus
    1e-5, and multiplies by it alone (openai/sparse_autoencoder, `LN`). A zero row of `unit-norm`
    stays zero.
    """
    one, mean = torch.ones_like(x[:, :1]), x.mean(dim=1, keepdim=True)
    if norm == "centre":
        return RowScale(mean, one, one)
    if norm == "layer-norm":
        deviation = (x - mean).std(dim=1, keepdim=True)
        return RowScale(mean, deviation, deviation + EPSILON)
    size = x.norm(dim=1, keepdim=True) / x.shape[1] ** 0.5
    size = torch.where(size > 0, size, one)
    return RowScale(torch.zeros_like(mean), size, size)
