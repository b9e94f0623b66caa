"""SAEs that several processes train: cut into shards."""

import torch
from torch import nn

from saelab.config import UsageError
from saelab.sae.base import AbstractSAE
from saelab.sae.transcoder import make_transcoder
from saelab.shard import ALONE, LatentShard, Replicas, latent_dims


def dims_of(sae: AbstractSAE) -> dict[str, int]:
    """For each tensor of the SAE that counts latents, the dimension that does."""
    return latent_dims(lambda d_sae: empty_like(sae, d_sae).state_dict(), sae.config.d_sae)


def empty_like(sae: AbstractSAE, d_sae: int) -> AbstractSAE:
    """An SAE of the same widths with `d_sae` latents, on the meta device."""
    with torch.device("meta"):
        out = sae.config.model_copy(update={"d_sae": d_sae}).build(sae.d_in)
        if sae.is_transcoder:
            make_transcoder(out, sae.d_out, skip=sae.W_skip is not None)
    return out


@torch.no_grad()
def keep_shard(sae: AbstractSAE, rank: int, world: int, replicas: Replicas = ALONE) -> None:
    """Keep of the SAE the latents of one of `world` processes, of all replicas, in place.

    Raises:
        UsageError: so many processes cannot train it together.
    """
    _check_spread(sae, world, replicas)
    size = world // replicas.count
    shard = LatentShard(rank % size, size, sae.d_sae, replicas)
    parameters = dict(sae.named_parameters())
    for name, dim in dims_of(sae).items():
        part = shard.of(sae.state_dict()[name], dim).contiguous()
        setattr(sae, name, nn.Parameter(part) if name in parameters else part)
    sae.shard = shard


def _check_spread(sae: AbstractSAE, world: int, replicas: Replicas = ALONE) -> None:
    """Refuse an SAE that so many processes, of all replicas, cannot train together.

    Raises:
        UsageError: gives the reason.
    """
    if problem := sae.config.spread_problem:
        raise UsageError(
            f"{world} processes cannot train a {sae.config.variant} SAE together: {problem}; start "
            "one process, without torchrun."
        )
    if sae.d_sae < (size := world // replicas.count):
        raise UsageError(
            f"{size} processes cannot share {sae.d_sae} latents; start at most "
            f"{sae.d_sae * replicas.count}."
        )
