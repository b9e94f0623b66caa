"""Cross-layer transcoders by layer: an SAE of each, and where its latents write further on."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.sae.base import AbstractSAE
from saelab.sae.interop.convert import from_foreign
from saelab.sae.targets import LayerTranscoder
from saelab.training.domain import norms


@dataclass(frozen=True)
class FurtherWrite:
    """What the latents of one layer write to the MLP output of a later one.

    Attributes:
        site: the hook that is written.
        W_dec: one row per latent; times `factor` it is in the model's units.
        max_norm: nothing is written where the output's norm is larger, as training left it out.
    """

    site: str
    W_dec: Float[Tensor, "d_sae d_out"]
    factor: float
    max_norm: float | None = None

    def lands(self, value: Float[Tensor, "*rows d_out"]) -> Bool[Tensor, "*rows"]:
        """Where it is written, from the output as it is."""
        if self.max_norm is None:
            return torch.ones(value.shape[:-1], dtype=torch.bool, device=value.device)
        return norms(value) <= self.max_norm

    def rows(self, latents: Int[Tensor, " n"], dtype: torch.dtype) -> Float[Tensor, "n d_out"]:
        """What these latents write per unit."""
        return self.W_dec[latents].to(dtype) * self.factor


@torch.no_grad()
def layer_sae(part: LayerTranscoder, read: float, written: float) -> AbstractSAE:
    """A layer as a transcoder of activations as they are.

    Args:
        part: the layer, trained on `read` times its input and `written` times its output.
        read: that factor.
        written: and this one.
    """
    sae = from_foreign(part.own)
    assert sae.b_in is not None
    sae.b_in.copy_(part.centre / read)
    sae.get_parameter("W_enc").mul_(read)
    sae.W_dec.div_(written)
    sae.b_dec.div_(written)
    return sae
