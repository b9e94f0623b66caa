"""SAEs with decoder rows and without: what needs them asks here, and so does what needs neither."""

import torch

from saelab.config import UsageError
from saelab.sae.base import AbstractSAE, AbstractSAEConfig


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
    """The dtype of the weights of an SAE, and of the rows that it reads."""
    return next(sae.parameters()).dtype
