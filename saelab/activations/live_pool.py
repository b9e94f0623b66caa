"""Rows that are shuffled together, at every hook that live batches need."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

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
    """Rows in the order of reading, by hook, and in which order they are served.

    Attributes:
        order: which row is served when; `served` is the same where a site has limits.
    """

    rows: Mapping[str, Float[Tensor, "row _"]]
    order: Int[Tensor, " row"]
    served: Mapping[LiveSite, Int[Tensor, " row"]]

    @property
    def n(self) -> int:
        """Rows."""
        return len(self.order)

    def batch(self, site: LiveSite, start: int, stop: int) -> ActivationBatch:
        """Copies of what is served to SAEs of this site from row `start` to `stop`."""
        chosen = self.served.get(site, self.order)[start:stop]
        return ActivationBatch(*(self.rows[hook].index_select(0, chosen) for hook in site.hooks))


class Filling:
    """A pool that is being filled, pass by pass, by all processes together.

    Args:
        counts: rows of each forward pass.
        order: which row is served when, by their places in the order of reading.
        like: has the rows' dtype and device.
        capture: this process's rows of the pass with this number, at every hook; in the memory that
            is given, if any.
    """

    def __init__(
        self,
        counts: Sequence[int],
        order: Int[Tensor, " row"],
        exchange: RowExchange,
        like: Float[Tensor, "*any"],
        capture: Callable[[int, Rows], Rows],
    ) -> None:
        self._counts, self._order, self._exchange = counts, order, exchange
        self._like, self._capture = like, capture
        self._rows = {h: like.new_empty(len(order), exchange.widths[h]) for h in exchange.own}
        self._passes = self._start = 0

    def up_to(self, share: float) -> None:
        """Do passes until this share of them is done."""
        while self._passes < share * len(self._counts):
            self._next()

    def pool(self, sites: Sequence[LiveSite]) -> Pool:
        """The pool, once it is full."""
        self.up_to(1.0)
        of_sites = {site: served(site, self._rows, self._order) for site in sites if site.limits}
        return Pool(self._rows, self._order, of_sites)

    def _next(self) -> None:
        """A pass in each process."""
        exchange, first = self._exchange, self._passes
        rank, world = exchange.ranks.rank, exchange.ranks.world
        counts = self._counts[first : first + world]
        here = [*counts] + [0] * (world - len(counts))
        stops = [*accumulate(here, initial=self._start)]
        places = [
            {hook: rows[start:stop] for hook, rows in self._rows.items()}
            for start, stop in pairwise(stops)
        ]
        # What no other process is sent is written where it is served from.
        into = places[0] if world == 1 else {}
        mine = self._capture(first + rank, into) if rank < len(counts) else {}
        for found, place in zip(exchange.rows(mine, here, self._like), places, strict=True):
            for hook, rows in found.items():
                if rows is not place[hook]:
                    place[hook].copy_(rows)
        self._start, self._passes = stops[-1], self._passes + world


def joined(parts: Sequence[ActivationBatch]) -> ActivationBatch:
    """The rows of all parts, one after the other."""
    if len(parts) == 1:
        return parts[0]
    targets = [part.target for part in parts if part.target is not None]
    return ActivationBatch(
        torch.cat([part.x for part in parts]), torch.cat(targets) if targets else None
    )


def served(
    site: LiveSite, rows: Mapping[str, Float[Tensor, "row _"]], order: Int[Tensor, " row"]
) -> Int[Tensor, " row"]:
    """In the place of each row in this order, itself or the next one within the site's limits.

    Raises:
        UsageError: no row is.
    """
    inside = torch.stack([rows[h].float().norm(dim=1) <= most for h, most in site.limits.items()])
    kept = inside.all(dim=0)[order].nonzero()[:, 0]
    if not len(kept):
        raise UsageError(f"All {len(order)} rows of a pool at {site.x} are massive.")
    at = torch.searchsorted(kept, torch.arange(len(order), device=kept.device))
    return order[kept[at % len(kept)]]
