"""The rows of a unit: forward passes over its contexts, and backward passes for gradients."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from numpy import ndarray
from torch import Tensor

from saelab.activations.annotate import ROW
from saelab.activations.columns import Columns
from saelab.activations.corpus import PADDING
from saelab.activations.format import SiteSpec
from saelab.activations.packing import StoredContexts
from saelab.activations.sequences import Sequences
from saelab.kernels.cuda import finish
from saelab.lm.protocol import ActivationSource

BOXES = 16
"""Tensors on their way to a GPU at once; one more waits for the first."""


def row_mask(
    lm: ActivationSource,
    tokens: Int[ndarray, "*shape"],
    columns: Mapping[str, Shaped[ndarray, "*shape"]] | None = None,
) -> Bool[ndarray, "*shape"]:
    """Which positions become rows: not special tokens, padding, or what `ROW` excludes."""
    mask = ~np.isin(tokens, [PADDING, *lm.info.special_token_ids])
    return mask & columns[ROW] if columns and ROW in columns else mask


def model_input(tokens: Int[ndarray, "context pos"]) -> Int[Tensor, "context pos"]:
    """Token ids that a model accepts. Padding is at the end, where no real token attends to it."""
    return torch.from_numpy(np.where(tokens == PADDING, 0, tokens).astype(np.int64))


def unit_rows(
    lm: ActivationSource,
    sites: Sequence[SiteSpec],
    contexts: StoredContexts,
    *,
    dtype: torch.dtype,
    batch_size: int,
    advance: Callable[[int], object],
) -> dict[str, Float[Tensor, "row d_in"]]:
    """The rows of these contexts at every site, in reading order, as `dtype` on the model's device.

    Sequences of similar length run together; a batch has the positions of `batch_size` full
    contexts. On a GPU all batches are queued without waiting. `advance` is called with the number
    of rows of each batch.
    """
    mask = row_mask(lm, contexts.tokens, contexts.columns).ravel()
    batches = _batches(contexts.tokens, mask, batch_size)
    parts = (
        [b.tokens.ravel() for b in batches],
        [b.own for b in batches],
        [b.rows for b in batches],
    )
    # In one copy: each has its price.
    tokens, own, rows = sent(_joined(parts), lm).split([sum(map(len, part)) for part in parts])
    out = {
        site.name: torch.empty(int(mask.sum()), site.d_in, dtype=dtype, device=lm.device)
        for site in sites
    }
    read = done = 0
    for batch in batches:
        some = tokens[read : read + batch.tokens.size].view(batch.tokens.shape)
        stop = done + len(batch.rows)
        for name, values in _values(lm, some, batch.tokens != PADDING, sites).items():
            found = values.flatten(0, 1).index_select(0, own[done:stop])
            if batch.together:
                first = int(batch.rows[0])
                out[name][first : first + len(batch.rows)].copy_(found)
            else:
                out[name].index_copy_(0, rows[done:stop], found.to(dtype))
        read, done = read + batch.tokens.size, stop
        advance(len(batch.rows))
    return out


@dataclass(frozen=True)
class _Batch:
    """Sequences that run together.

    Attributes:
        tokens: with `PADDING`.
        own: which of the flattened tokens have rows.
        rows: the indices of these rows in the unit.
    """

    tokens: Int[ndarray, "sequence pos"]
    own: Int[ndarray, " row"]
    rows: Int[ndarray, " row"]

    @property
    def together(self) -> bool:
        """Whether the rows are consecutive."""
        rows = self.rows
        return len(rows) > 0 and bool((np.diff(rows) == 1).all())


def _batches(
    contexts: Int[ndarray, "context pos"], mask: Bool[ndarray, " place"], batch_size: int
) -> list[_Batch]:
    sequences, row = Sequences.of(contexts), np.cumsum(mask) - 1
    out = []
    for chosen in sequences.batches(batch_size * contexts.shape[1]):
        tokens, place = sequences.padded(chosen)
        place = place.ravel()
        own = np.flatnonzero((place >= 0) & mask[place])
        out.append(_Batch(tokens, own, row[place[own]]))
    return out


def _joined(parts: Iterable[Iterable[Int[ndarray, " _"]]]) -> Int[Tensor, " n"]:
    """All numbers one after the other; 0 for `PADDING`."""
    joined = np.concatenate([each for part in parts for each in part])
    return torch.from_numpy(np.where(joined == PADDING, 0, joined).astype(np.int64))


def sent(tensor: Int[Tensor, "*shape"], lm: ActivationSource) -> Int[Tensor, "*shape"]:
    """The tensor on the model's device; a copy to a GPU does not wait for queued work."""
    return _post.sent(tensor, lm.device) if lm.device.type == "cuda" else tensor.to(lm.device)


class _Post(threading.local):
    """Pinned memory of a thread, used in turns: to pin new memory takes milliseconds."""

    def __init__(self) -> None:
        self._boxes: deque[tuple[UInt8[Tensor, " byte"], torch.cuda.Event]] = deque()

    def sent(self, tensor: Int[Tensor, "*shape"], device: torch.device) -> Int[Tensor, "*shape"]:
        """The tensor on a GPU."""
        raw = tensor.contiguous().view(-1).view(torch.uint8)
        if len(self._boxes) < BOXES:
            self._boxes.append((raw[:0], torch.cuda.Event(blocking=True)))
        memory, arrived = self._boxes.popleft()
        arrived.synchronize()
        if len(memory) < len(raw):
            memory = torch.empty(len(raw), dtype=torch.uint8, pin_memory=True)
        there = memory[: len(raw)].copy_(raw).to(device, non_blocking=True)
        arrived.record(torch.cuda.current_stream(device))
        self._boxes.append((memory, arrived))
        return there.view(tensor.dtype).view(tensor.shape)


_post = _Post()


def seconds_per_token(
    lm: ActivationSource, sites: Sequence[SiteSpec], contexts: StoredContexts
) -> float:
    """Seconds per token of these contexts in one batch, after a smaller batch as warm-up."""
    sequences = Sequences.of(contexts.tokens)
    longest = next(sequences.batches(contexts.tokens.size))
    tokens, _ = sequences.padded(longest)
    some, real = model_input(tokens), tokens != PADDING
    _values(lm, some[:1], real[:1], sites)
    start = time.perf_counter()
    _values(lm, some, real, sites)
    finish(lm.device)
    return (time.perf_counter() - start) / int(real.sum())


def _values(
    lm: ActivationSource,
    tokens: Int[Tensor, "context pos"],
    real: Bool[ndarray, "context pos"],
    sites: Sequence[SiteSpec],
) -> Mapping[str, Float[Tensor, "context pos d_in"]]:
    """One batch at every site, by site name; `real` are the positions that are not padding."""
    hooks = list(dict.fromkeys(site.hook for site in sites))
    if all(site.kind == "activation" for site in sites):
        return lm.capture(tokens, hooks)
    activations, gradients = lm.gradients(tokens, hooks, torch.from_numpy(real))
    found = {"activation": activations, "gradient": gradients}
    return {site.name: found[site.kind][site.hook] for site in sites}


def unit_columns(lm: ActivationSource, contexts: StoredContexts, first: int) -> Columns:
    """The columns of a unit, whose first context has this index, in reading order."""
    mask = row_mask(lm, contexts.tokens, contexts.columns)
    context, position = mask.nonzero()
    padding = int((contexts.tokens == PADDING).sum())
    special = int((~row_mask(lm, contexts.tokens)).sum())
    unwanted = int((~mask).sum()) - special
    return Columns(
        token=contexts.tokens[mask],
        position=position,
        context=context + first,
        document=contexts.document[mask],
        contexts=contexts.tokens,
        labels=None if contexts.labels is None else contexts.labels[mask],
        excluded={"padding": padding, "special": special - padding}
        | ({"role": unwanted} if unwanted else {}),
    )
