"""Groups of rows on their way from a store's files to the device."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Int, Integer, UInt8
from torch import Tensor

from saelab.activations.site import SiteView

PART_BYTES = 2**24
"""What is read before the device starts to fetch it."""


class Staging:
    """Memory for one group of rows, used again for the next: new memory is several times slower.

    For a GPU the files are read into pinned memory a part at a time, and each part is copied by a
    stream of its own while the next is read and the device computes. What `load` returned holds
    until it is called again; it then waits for the work that was queued before `release`.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._host: dict[str, UInt8[Tensor, " byte"]] = {}
        self._there: dict[str, UInt8[Tensor, " byte"]] = {}
        self._copying = _Copying(device) if device.type == "cuda" else None

    def load(
        self,
        views: Mapping[str, SiteView],
        blocks: Integer[np.ndarray, " block"],
        n_rows: int,
    ) -> dict[str, Float[Tensor, "row _"]]:
        """The `n_rows` rows of these blocks at each site, in the stored number type."""
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
        # Memory that another stream gave back may still be in use there: it is asked for by ours.
        with torch.cuda.stream(self._copying.stream):
            out = self._memory_there("", len(raw))
            out.copy_(host, non_blocking=True)
            self._copying.copied.record()
        return out.view(torch.int64)

    def receive(self) -> None:
        """Let the device's current work wait for the rows."""
        if self._copying is not None:
            torch.cuda.current_stream(self._device).wait_event(self._copying.copied)

    def release(self) -> None:
        """No work that is queued from now on reads the rows."""
        if self._copying is not None:
            self._copying.used.record(torch.cuda.current_stream(self._device))

    def _fetch(
        self, name: str, view: SiteView, blocks: Integer[np.ndarray, " block"], size: int
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
        copied: the copies that were asked for are done.
        used: what is computed with their results is done.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.copied, self.used = torch.cuda.Event(), torch.cuda.Event()

    def begin(self) -> None:
        """Wait until nothing is fetched from the pinned memory; order what follows after use."""
        self.copied.synchronize()
        self.stream.wait_event(self.used)
