"""Which latents are dead, measured in tokens."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from saelab.shard import ALONE, LatentShard, Replicas
from saelab.types import SparseCodes


class DeadLatents:
    """For each latent, the number of tokens since it last fired."""

    def __init__(self, d_sae: int, dead_after: int, device: torch.device) -> None:
        self.dead_after = dead_after
        self.since_fired: Int[Tensor, " d_sae"] = torch.zeros(
            d_sae, dtype=torch.int64, device=device
        )

    def update(self, codes: SparseCodes, replicas: Replicas = ALONE) -> None:
        """Count one batch, of whose rows this process may have a part.

        A latent that was selected with value zero has not fired.
        """
        self.since_fired += len(codes) * replicas.count
        if replicas.count == 1:
            self.since_fired[codes.indices[codes.active]] = 0
        else:
            self.since_fired[replicas.sum_all(codes.firing_counts()) > 0] = 0

    @property
    def dead(self) -> Bool[Tensor, " d_sae"]:
        """Latents that have been silent for at least `dead_after` tokens."""
        return self.since_fired >= self.dead_after

    def mask(self, shard: LatentShard | None = None) -> Bool[Tensor, " d_sae"] | None:
        """`dead`, or None while no latent of any process is, so that AuxK then costs nothing."""
        dead = self.dead
        some = bool(dead.any()) if shard is None else shard.any_all(dead.any())
        return dead if some else None
