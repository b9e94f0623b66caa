"""SAEs with decoder rows and without: what needs them asks here, and so does what needs neither."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.config import UsageError
from saelab.sae.base import AbstractSAE, AbstractSAEConfig

NARROW = ("W_enc", "W_dec")
"""The tensors that may have 16 bits."""


def check_decoder(config: AbstractSAEConfig) -> None:
    """Refuse what needs decoder rows.

    Raises:
        UsageError: the SAE has none.
    """
    if problem := config.decoder_problem:
        raise UsageError(
            f"A {config.variant} SAE has no decoder rows, so its latents cannot be steered, "
            f"patched, or read as logits: {problem}; use another variant."
        )


def device_of(sae: AbstractSAE) -> torch.device:
    """Where the weights of an SAE are."""
    return next(sae.parameters()).device


def dtype_of(sae: AbstractSAE) -> torch.dtype:
    """The dtype of the rows that an SAE reads and writes; W_enc and W_dec may be narrower."""
    return sae.b_dec.dtype if sae.config.decoder_problem is None else next(sae.parameters()).dtype


def widens(sae: AbstractSAE) -> bool:
    """Whether W_enc and W_dec may have 16 bits while all else is float32.

    They are then widened to float32 as they are read, so sums are float32's, and results are those
    of the same weights stored as float32.
    """
    encoder = sae.affine_encoder()
    stored = dict(sae.named_parameters()).get("W_enc")
    return len(sae.widths) == 1 and encoder is not None and encoder.W_enc is stored


def atoms_of(
    sae: AbstractSAE, latents: "slice | int | list[int] | Int[Tensor, ' n'] | None" = None
) -> Float[Tensor, "*n d_out"]:
    """The decoder rows of some latents (None: of all), in the dtype of the rows that it writes."""
    rows = sae.W_dec if latents is None else sae.W_dec[latents]
    return rows.to(dtype_of(sae))
