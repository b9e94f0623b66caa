"""Rows that are shuffled together, at every hook that live batches need."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.activations.row_exchange import RowExchange, Rows
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
            rows[start:stop].to(torch.float32, copy=True)
            if chosen is None
            else rows[chosen[start:stop]].float()
            for rows in (self.rows[hook] for hook in site.hooks)
        ]
        return ActivationBatch(*parts)


class Filling:
    """A pool that is being filled, pass by pass, by all processes together.

    Args:
        counts: rows of each forward pass.
        where: the place in the pool of each row, in the order of reading.
        like: has the rows' dtype and device.
        capture: this process's rows of the pass with this number, at every hook.
    """

    def __init__(
        self,
        counts: Sequence[int],
        where: Int[Tensor, " row"],
        exchange: RowExchange,
        like: Float[Tensor, "*any"],
        capture: Callable[[int], Rows],
    ) -> None:
        self._counts, self._where, self._exchange = counts, where, exchange
        self._like, self._capture = like, capture
        self._rows = {h: like.new_empty(len(where), exchange.widths[h]) for h in exchange.own}
        self._passes = self._start = 0

    def up_to(self, share: float) -> None:
        """Do passes until this share of them is done."""
        while self._passes < share * len(self._counts):
            self._next()

    def pool(self, sites: Sequence[LiveSite]) -> Pool:
        """The pool, once it is full."""
        self.up_to(1.0)
        of_sites = {site: served(site, self._rows) for site in sites if site.limits}
        return Pool(len(self._where), self._rows, of_sites)

    def _next(self) -> None:
        """A pass in each process."""
        exchange, first = self._exchange, self._passes
        rank, world = exchange.ranks.rank, exchange.ranks.world
        counts = self._counts[first : first + world]
        mine = self._capture(first + rank) if rank < len(counts) else {}
        here = [*counts] + [0] * (world - len(counts))
        for found, n in zip(exchange.rows(mine, here, self._like), here, strict=True):
            place = self._where[self._start : self._start + n]
            for hook in exchange.own if n else ():
                self._rows[hook].index_copy_(0, place, found[hook])
            self._start += n
        self._passes += world


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
