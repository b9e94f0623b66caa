"""Rows that are shuffled together, at every hook that live batches need."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.config import UsageError
from saelab.types import ActivationBatch


@dataclass(frozen=True)
class LiveSite:
    """What one SAE reads of the model.

    Attributes:
        x: the hook that it reads.
        target: the hook that a transcoder reconstructs.
        max_norm, max_target_norm: rows with a larger norm there are not served; None: all are.
    """

    x: str
    target: str | None = None
    max_norm: float | None = None
    max_target_norm: float | None = None

    @property
    def hooks(self) -> tuple[str, ...]:
        """The hooks that it needs."""
        return (self.x,) if self.target is None else (self.x, self.target)

    @property
    def limits(self) -> dict[str, float]:
        """The largest norm at each hook that has one."""
        both = zip(self.hooks, (self.max_norm, self.max_target_norm), strict=False)
        return {hook: limit for hook, limit in both if limit is not None}


@dataclass(frozen=True)
class Pool:
    """Rows in the order of serving, by hook; where a site has limits, which row is served when."""

    n: int
    rows: Mapping[str, Float[Tensor, "row _"]]
    served: Mapping[LiveSite, Int[Tensor, " row"]]

    def batch(self, site: LiveSite, start: int, stop: int) -> ActivationBatch:
        """Copies of what is served to SAEs of this site from row `start` to `stop`."""
        chosen = self.served.get(site)
        parts = [
            # A copy, since a view would keep the pool while the next one is filled.
            (rows[start:stop].clone() if chosen is None else rows[chosen[start:stop]]).float()
            for rows in (self.rows[hook] for hook in site.hooks)
        ]
        return ActivationBatch(*parts)


def joined(parts: Sequence[ActivationBatch]) -> ActivationBatch:
    """The rows of all parts, one after the other."""
    if len(parts) == 1:
        return parts[0]
    targets = [part.target for part in parts if part.target is not None]
    return ActivationBatch(
        torch.cat([part.x for part in parts]), torch.cat(targets) if targets else None
    )


def served(site: LiveSite, rows: Mapping[str, Float[Tensor, "row _"]]) -> Int[Tensor, " row"]:
    """For each row, itself if it is within the site's limits, else the next one that is.

    Raises:
        UsageError: no row is.
    """
    inside = torch.stack([rows[h].float().norm(dim=1) <= most for h, most in site.limits.items()])
    kept = inside.all(dim=0).nonzero()[:, 0]
    if not len(kept):
        raise UsageError(f"All {inside.shape[1]} rows of a pool at {site.x} are massive.")
    at = torch.searchsorted(kept, torch.arange(inside.shape[1], device=kept.device))
    return kept[at % len(kept)]
