"""Starting an SAE from the weights of a trained one, across variants whose weights fit."""

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.config import UsageError
from saelab.sae.base import AbstractSAE


@torch.no_grad()
def start_from(sae: AbstractSAE, source: AbstractSAE, rows: Float[Tensor, "n d_in"]) -> None:
    """Copy the weights of the trained SAE `source` into the initialised `sae`.

    Pre-activations then equal those of `source`, which is not changed. `rows`, which `sae` will
    read, set what `source` does not have. A skip connection that `source` lacks starts at zero.

    Raises:
        UsageError: widths or kinds of weights differ.
    """
    _check_same_widths(sae, source)
    own, theirs = dict(sae.named_parameters()), dict(source.named_parameters())
    if odd := sorted((own.keys() ^ theirs.keys()) - {"threshold", "W_skip"}):
        kinds = [each.config.model_dump()["variant"] for each in (sae, source)]
        raise UsageError(
            f"A {kinds[0]} SAE cannot start from a {kinds[1]} one, since only one of the two "
            f"has {' and '.join(odd)}; start from another variant, or train from the beginning."
        )
    for name in own.keys() & theirs.keys() - {"threshold"}:
        own[name].copy_(theirs[name])
    encoders = sae.affine_encoder(), source.affine_encoder()
    centred = [encoder is not None and encoder.centre is not None for encoder in encoders]
    if centred[0] != centred[1]:
        shift = source.input_bias @ theirs["W_enc"].to(source.input_bias.dtype)
        own["b_enc"].add_(shift if centred[0] else -shift)
    sae.take_threshold(source, rows)
    sae.restore_norms()


def _check_same_widths(sae: AbstractSAE, source: AbstractSAE) -> None:
    """Refuse to start `sae` from a trained SAE of another shape.

    Raises:
        UsageError: names the width, number of latents, or kind that differs, with the remedy.
    """
    if source.row_norm is not None:
        raise UsageError(
            f"The SAE to start from normalises rows ({source.row_norm}), which training does not; "
            "train from the beginning."
        )
    if source.is_transcoder != sae.is_transcoder:
        what = "is a transcoder" if source.is_transcoder else "reconstructs what it reads"
        remedy = "give" if source.is_transcoder else "leave out"
        raise UsageError(f"The SAE to start from {what}; {remedy} --target-site.")
    if source.W_skip is not None and sae.W_skip is None:
        raise UsageError("The SAE to start from has a skip connection; give --skip.")
    if source.d_sae != sae.d_sae:
        raise UsageError(
            f"The SAE to start from has {source.d_sae} latents, and {sae.d_sae} are asked; take "
            f"--d-sae {source.d_sae}."
        )
    for does, width, asked in (
        ("reads", source.d_in, sae.d_in),
        ("writes", source.d_out, sae.d_out),
    ):
        if width != asked:
            raise UsageError(
                f"The SAE to start from {does} rows of {width} numbers, and this site has {asked}; "
                "take a site of its width."
            )
