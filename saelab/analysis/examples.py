"""The examples kept for every latent while a corpus streams past: the strongest, or a fair sample.

Memory is `d_sae * n` examples however long the corpus is, and each batch costs a sort of its own
firings only.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from saelab.types import SparseCodes

CHUNK = 4096


@dataclass(frozen=True)
class Firings:
    """All firings of a batch of contexts.

    Attributes:
        latent, value: what fired and how strongly.
        context, position: where, with contexts numbered as in the corpus.
    """

    latent: Int[ndarray, " event"]
    value: Float[ndarray, " event"]
    context: Int[ndarray, " event"]
    position: Int[ndarray, " event"]

    def take(self, which: Int[ndarray, " kept"]) -> "Firings":
        """Some of the firings."""
        return Firings(
            self.latent[which], self.value[which], self.context[which], self.position[which]
        )


def firings(codes: SparseCodes, mask: Bool[Tensor, "context pos"], first: int) -> Firings:
    """The firings of `codes`, whose rows are the true positions of `mask` in reading order."""
    active = codes.active.cpu()
    row, slot = active.nonzero(as_tuple=True)
    context, position = mask.cpu().nonzero(as_tuple=True)
    return Firings(
        codes.indices.cpu()[row, slot].numpy(),
        codes.values.cpu()[row, slot].float().numpy(),
        context[row].numpy() + first,
        position[row].numpy(),
    )


class WindowReader:
    """Activations of given latents around given positions of one batch."""

    def __init__(
        self, codes: SparseCodes, mask: Bool[Tensor, "context pos"], first: int, reach: int
    ) -> None:
        self.codes = SparseCodes(codes.values.cpu().float(), codes.indices.cpu(), codes.d_sae)
        self.first = first
        self.reach = reach
        mask = mask.cpu()
        rows = torch.full(mask.shape, -1, dtype=torch.int64)
        rows[mask] = torch.arange(int(mask.sum()))
        self.rows = torch.nn.functional.pad(rows, (reach, reach), value=-1)

    def read(self, events: Firings) -> Float[ndarray, "event window"]:
        """`[event, 2 * reach + 1]`: zero where the latent is silent or there is no token."""
        parts = [
            self._chunk(events.take(np.arange(i, min(i + CHUNK, len(events.latent)))))
            for i in range(0, len(events.latent), CHUNK)
        ]
        width = 2 * self.reach + 1
        return np.concatenate(parts) if parts else np.zeros((0, width), dtype=np.float16)

    def _chunk(self, events: Firings) -> Float[ndarray, "event window"]:
        context = torch.from_numpy(events.context - self.first)[:, None]
        offsets = torch.arange(2 * self.reach + 1)[None, :]
        rows = self.rows[context, torch.from_numpy(events.position)[:, None] + offsets]
        latent = torch.from_numpy(events.latent)[:, None, None]
        mine = self.codes.indices[rows.clamp_min(0)] == latent
        values = (self.codes.values[rows.clamp_min(0)] * mine).sum(dim=-1)
        return values.masked_fill(rows < 0, 0.0).to(torch.float16).numpy()


class ExampleKeeper:
    """For every latent, the `n` firings with the largest key seen so far."""

    def __init__(self, d_sae: int, n: int, reach: int) -> None:
        self.n = n
        self.key: Float[ndarray, "d_sae n"] = np.full((d_sae, n), -np.inf, dtype=np.float32)
        self.context: Int[ndarray, "d_sae n"] = np.full((d_sae, n), -1, dtype=np.int32)
        self.position: Int[ndarray, "d_sae n"] = np.zeros((d_sae, n), dtype=np.int32)
        self.value: Float[ndarray, "d_sae n"] = np.zeros((d_sae, n), dtype=np.float32)
        self.window: Float[ndarray, "d_sae n window"] = np.zeros(
            (d_sae, n, 2 * reach + 1), dtype=np.float16
        )

    def update(
        self,
        events: Firings,
        key: Float[ndarray, " event"],
        windows: WindowReader,
        *,
        one_per_context: bool,
    ) -> None:
        """Offer a batch's firings; of those of one latent in one context, maybe only the best."""
        better = np.flatnonzero(key > self.key[events.latent, -1])
        if one_per_context:
            better = better[_best_of_each(events.take(better), key[better])]
        better = better[_first_n(events.latent[better], key[better], self.n)]
        chosen = events.take(better)
        self._merge(chosen, key[better], windows.read(chosen))

    def _merge(
        self, new: Firings, key: Float[ndarray, " event"], window: Float[ndarray, "event window"]
    ) -> None:
        touched = np.unique(new.latent)
        old_latent = np.repeat(touched, self.n)
        latent = np.concatenate([old_latent, new.latent])
        fields = {
            "key": key,
            "context": new.context,
            "position": new.position,
            "value": new.value,
            "window": window,
        }
        pooled = {
            name: np.concatenate([_flat(getattr(self, name)[touched]), values])
            for name, values in fields.items()
        }
        keep = _first_n(latent, pooled["key"], self.n)
        # Every touched latent keeps exactly n: its n old entries alone would suffice.
        for name in fields:
            getattr(self, name)[touched] = pooled[name][keep].reshape(
                len(touched), self.n, *pooled[name].shape[1:]
            )


def _flat(array: ndarray) -> ndarray:
    return array.reshape(-1, *array.shape[2:])


def _best_of_each(events: Firings, key: Float[ndarray, " event"]) -> Int[ndarray, " kept"]:
    order = np.lexsort((events.position, -key, events.context, events.latent))
    same = (np.diff(events.latent[order]) == 0) & (np.diff(events.context[order]) == 0)
    return order[np.concatenate([[True], ~same])] if len(order) else order


def _first_n(
    latent: Int[ndarray, " event"], key: Float[ndarray, " event"], n: int
) -> Int[ndarray, " kept"]:
    """The `n` events of largest key of each latent, ordered by latent and falling key."""
    order = np.lexsort((-key, latent))
    sorted_latent = latent[order]
    start = np.searchsorted(sorted_latent, sorted_latent)
    return order[np.arange(len(order)) - start < n]
