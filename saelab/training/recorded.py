"""Work on a CUDA device that is recorded once and replayed at every step."""

import gc
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

import torch

from saelab.kernels.exchange import Action, LatentExchange

T = TypeVar("T")


class _Memory:
    """The memory and the streams of a device's recordings.

    Recordings are replayed one after the other and leave nothing in this memory, so all use the
    same. Memory of a graph is only taken again on the stream that it was taken on.
    """

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream()
        # The few kernels of the second stream should not queue behind a full device.
        self.side = torch.cuda.Stream(priority=-1)
        # The memory is given back with its last graph: this one, once no recording is left.
        self._last = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self.stream):
            self.begin(self._last)
            torch.zeros(1, device="cuda")
            self._last.capture_end()

    @classmethod
    def shared(cls) -> "_Memory":
        """That of the current device."""
        device = torch.cuda.current_device()
        found = _MEMORY.get(device)
        if found is None:
            found = _MEMORY[device] = cls()
        return found

    def begin(self, graph: torch.cuda.CUDAGraph) -> None:
        """Record what follows on the current stream into this graph."""
        # Other threads may allocate and copy meanwhile: one of them reads the store.
        graph.capture_begin(self.pool, capture_error_mode="thread_local")


_MEMORY: WeakValueDictionary[int, _Memory] = WeakValueDictionary()
"""By the number of the device, as long as there is a recording."""


class Recorded(Generic[T]):
    """What was recorded of a step: CUDA graphs, and between them what processes exchange.

    Attributes:
        result: what the step returned while it was recorded; a replay renews its tensors.
    """

    result: T

    def __init__(self, memory: _Memory) -> None:
        self._parts: list[Action] = []
        self._memory, self._graph = memory, torch.cuda.CUDAGraph()

    def replay(self) -> T:
        """Do what was recorded."""
        for part in self._parts:
            part()
        return self.result

    def begin(self) -> None:
        """Record what follows on this stream."""
        self._graph = torch.cuda.CUDAGraph()
        self._memory.begin(self._graph)

    def end(self) -> None:
        """End the graph; an empty one, of which torch warns, is not kept."""
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            self._graph.capture_end()
        others = [one for one in said if "Graph is empty" not in str(one.message)]
        for one in others:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        if len(others) == len(said):
            self._parts.append(self._graph.replay)

    def between(self, action: Action) -> None:
        """Do the action after what was recorded so far, and before what follows."""
        self.end()
        self._parts.append(action)
        self.begin()


def record(run: Callable[[torch.cuda.Stream | None], T], exchange: LatentExchange) -> Recorded[T]:
    """The graphs of what `run` launches; `run` gets a second stream. Kernels must be compiled.

    The second stream must have no work left where processes exchange, since a graph ends there.
    """
    torch.cuda.synchronize()
    with suppress(torch.cuda.OutOfMemoryError):
        return _recorded(run, exchange)
    # A graph takes memory of its own, and cannot take what waits here to be used again.
    gc.collect()
    torch.cuda.empty_cache()
    return _recorded(run, exchange)


def _recorded(
    run: Callable[[torch.cuda.Stream | None], T], exchange: LatentExchange
) -> Recorded[T]:
    memory, before = _Memory.shared(), exchange.between
    recorded: Recorded[T] = Recorded(memory)
    with torch.cuda.stream(memory.stream):
        recorded.begin()
        exchange.between = recorded.between
        try:
            recorded.result = run(memory.side)
        except BaseException:
            with suppress(RuntimeError):  # What went wrong in `run` is the reason, not this.
                recorded.end()
            raise
        finally:
            exchange.between = before
        recorded.end()
    return recorded
