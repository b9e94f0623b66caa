"""What each kernel computes, in dense torch: what the fast versions are tested against."""

from jaxtyping import Float
from torch import Tensor

from saelab.types import SparseCodes


def sparse_decode(
    codes: SparseCodes, W_dec: Float[Tensor, "d_sae d_out"]
) -> Float[Tensor, "batch d_out"]:
    """`z @ W_dec`, with z written out: `batch * d_sae` numbers and a dense product."""
    return codes.dense() @ W_dec
