"""Groups of rows on their way from a store's files to the device."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Int, Integer, UInt8
from torch import Tensor

from saelab.activations.joint import AnySite

PART_BYTES = 2**24
"""Bytes that are read before the device starts to copy them."""


class Staging:
    """Memory for one group of rows, reused for the next, since new memory is several times slower.

    For a GPU, files are read into pinned memory in parts. A stream of its own copies each part
    while the next is read and the device computes. The result of `load` is valid until the next
    call, which waits for work queued before `release`.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._host: dict[str, UInt8[Tensor, " byte"]] = {}
        self._there: dict[str, UInt8[Tensor, " byte"]] = {}
        self._copying = _Copying(device) if device.type == "cuda" else None

    def load(
        self,
        views: Mapping[str, AnySite],
        blocks: Integer[np.ndarray, " block"],
        n_rows: int,
    ) -> dict[str, Float[Tensor, "row _"]]:
        """The `n_rows` rows of these blocks at each site, in the stored dtype."""
        sizes = {name: view.bytes_of(n_rows) for name, view in views.items()}
        if self._copying is None:
            return {n: v.read_blocks(blocks, self._memory(n, sizes[n])) for n, v in views.items()}
        self._copying.begin()
        with torch.cuda.stream(self._copying.stream):
            rows = {n: self._fetch(n, v, blocks, sizes[n]) for n, v in views.items()}
            self._copying.copied.record()
        return rows

    def order(self, order: Int[np.ndarray, " row"]) -> Int[Tensor, " row"]:
        """The order of the rows just loaded, on their device."""
        there = torch.from_numpy(order)
        if self._copying is None:
            return there
        raw = there.view(torch.uint8)
        host = self._memory("", len(raw))
        host.copy_(raw)
        # Memory freed by another stream may still be in use there, so our stream allocates it.
        with torch.cuda.stream(self._copying.stream):
            out = self._memory_there("", len(raw))
            out.copy_(host, non_blocking=True)
            self._copying.copied.record()
        return out.view(torch.int64)

    def receive(self) -> None:
        """Make the device's current stream wait for the rows."""
        if self._copying is not None:
            torch.cuda.current_stream(self._device).wait_event(self._copying.copied)

    def release(self) -> None:
        """Declare that no later work reads the rows."""
        if self._copying is not None:
            self._copying.used.record(torch.cuda.current_stream(self._device))

    def _fetch(
        self, name: str, view: AnySite, blocks: Integer[np.ndarray, " block"], size: int
    ) -> Float[Tensor, "row d_in"]:
        host, there = self._memory(name, size), self._memory_there(name, size)
        done = 0
        for ready in view.reading(blocks, host):
            if ready - done >= PART_BYTES or ready == size:
                there[done:ready].copy_(host[done:ready], non_blocking=True)
                done = ready
        return view.rows_of(there)

    def _memory(self, name: str, size: int) -> UInt8[Tensor, " byte"]:
        if name not in self._host or len(self._host[name]) < size:
            pinned = self._copying is not None
            self._host[name] = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        return self._host[name][:size]

    def _memory_there(self, name: str, size: int) -> UInt8[Tensor, " byte"]:
        if name not in self._there or len(self._there[name]) < size:
            self._there[name] = torch.empty(size, dtype=torch.uint8, device=self._device)
        return self._there[name][:size]


class _Copying:
    """A stream that copies to a GPU.

    Attributes:
        copied: event: all queued copies are done.
        used: event: all work on their results is done.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.copied, self.used = torch.cuda.Event(), torch.cuda.Event()

    def begin(self) -> None:
        """Wait until no copy reads the pinned memory; order later copies after current work."""
        self.copied.synchronize()
        self.stream.wait_event(self.used)
