"""A gated SAE, whose two encoders share their directions, is a JumpReLU SAE (arXiv 2404.16014)."""

from jaxtyping import Float
from torch import Tensor


def jumprelu_from_gated(
    W_gate: Float[Tensor, "d_in d_sae"],
    r_mag: Float[Tensor, " d_sae"],
    b_gate: Float[Tensor, " d_sae"],
    b_mag: Float[Tensor, " d_sae"],
) -> tuple[Float[Tensor, "d_in d_sae"], Float[Tensor, " d_sae"], Float[Tensor, " d_sae"]]:
    """W_enc, b_enc and threshold of the JumpReLU SAE that has the gated one's codes.

    With u = x @ W_gate a latent fires where u + b_gate > 0, with the value
    ReLU(exp(r_mag) u + b_mag). Said of a = exp(r_mag) u + b_mag: ReLU(a) where
    a > b_mag - exp(r_mag) b_gate. Below zero the ReLU decides alone, so a negative threshold is 0.
    """
    scale = r_mag.double().exp()
    threshold = (b_mag.double() - scale * b_gate.double()).clamp_min(0)
    return W_gate * scale.to(W_gate.dtype), b_mag, threshold.to(W_gate.dtype)
