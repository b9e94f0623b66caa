"""Transcoders: an SAE whose decoder reconstructs other activations than its encoder reads.

The usual pair is an MLP's input and output. Latents then replace the MLP, and attribution through
it becomes linear (arXiv 2406.11944). A skip connection models the MLP's linear part (arXiv
2501.18823). Any variant whose encoder has weights of its own can be one.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelab.config import UsageError
from saelab.sae.base import AbstractSAE, AbstractSAEConfig

RIDGE = 0.01
"""Ridge of the regression that initialises the encoder, relative to the input's mean variance."""


def check_transcoder(config: AbstractSAEConfig) -> None:
    """Refuse a variant that cannot be a transcoder.

    Raises:
        UsageError: gives the reason.
    """
    if problem := config.transcoder_problem:
        raise UsageError(
            f"A {config.variant} SAE cannot have another --target-site than its --site: {problem}; "
            "take another variant."
        )


def make_transcoder(
    sae: AbstractSAE, d_out: int, *, skip: bool = False, generator: torch.Generator | None = None
) -> AbstractSAE:
    """Give a freshly built SAE a decoder of width `d_out`, an input bias and maybe a skip matrix.

    Decoder rows are random unit rows; biases and skip matrix are zero; the encoder is not changed.
    The SAE is changed in place and returned.

    Raises:
        UsageError: the variant's encoder has no weights of its own.
    """
    check_transcoder(sae.config)
    like, d_in = sae.W_dec, sae.d_in
    sae.b_in = nn.Parameter(like.new_zeros(d_in))
    sae.W_dec = nn.Parameter(sae.target_rows(d_out, generator).to(like))
    sae.b_dec = nn.Parameter(like.new_zeros(d_out))
    if skip:
        sae.W_skip = nn.Parameter(like.new_zeros(d_in, d_out))
    return sae


@torch.no_grad()
def start_transcoder(
    sae: AbstractSAE, rows: Float[Tensor, "n d_in"], targets: Float[Tensor, "n d_out"]
) -> None:
    """Set b_dec and the encoder from a sample, before `sae.initialise(rows)`.

    b_dec is the targets' mean. Each encoder column has the direction of the linear function of the
    input that best predicts (ridge regression) the targets' component along its atom. If the
    targets are the input, this direction is the atom itself, as an SAE starts.
    """
    mean = targets.mean(dim=0)
    sae.b_dec.copy_(mean)
    for block in sae.blocks(rows - rows.mean(dim=0), targets - mean):
        x, y = block.rows.double(), block.targets.double()
        covariance = x.T @ x
        ridge = RIDGE * covariance.diagonal().mean().clamp_min(1e-30)
        identity = torch.eye(len(covariance), dtype=x.dtype, device=x.device)
        linear = torch.linalg.solve(covariance + ridge * identity, x.T @ y)
        columns = nn.functional.normalize(linear @ block.atoms.double().T, dim=0)
        block.columns.copy_(columns)


@torch.no_grad()
def shrink_codes(
    sae: AbstractSAE, values: Iterable[Tensor], scale: float, target_scale: float | None
) -> None:
    """`AbstractSAE.rescale` of an SAE whose `values` are in units of its codes.

    Atoms stay. A transcoder's encoder and skip connection change too.
    """
    target_scale = scale if target_scale is None else target_scale
    for value in values:
        value.div_(target_scale)
    if sae.b_in is None:
        return
    sae.b_in.div_(scale)
    sae.get_parameter("W_enc").mul_(scale / target_scale)
    if sae.W_skip is not None:
        sae.W_skip.mul_(scale / target_scale)
