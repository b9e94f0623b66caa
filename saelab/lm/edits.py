"""Edits that replace a site's activations during the model's forward pass."""

from jaxtyping import Bool, Float
from torch import Tensor

from saelab.lm.protocol import Edit


def replace_rows(mask: Bool[Tensor, "context pos"], rows: Float[Tensor, "row d_in"]) -> Edit:
    """An edit that puts `rows` at the masked positions and keeps all others."""

    def edit(value: Float[Tensor, "context pos d_in"]) -> Float[Tensor, "context pos d_in"]:
        edited = value.clone()
        edited[mask] = rows.to(value.dtype)
        return edited

    return edit
