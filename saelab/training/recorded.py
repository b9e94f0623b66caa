"""Work on a CUDA device that is recorded once and replayed at every step."""

import gc
from collections.abc import Callable
from contextlib import suppress

import torch

from saelab.kernels.exchange import Action, LatentExchange

PLENTY = 0.6
"""Share of the device's memory; as much as this is free, none is collected before a recording."""


class Recorded:
    """What was recorded of a step: CUDA graphs, and between them what processes exchange."""

    def __init__(self) -> None:
        self._parts: list[Action] = []
        self._graph = torch.cuda.CUDAGraph()
        # The graphs run in this order alone, so each may use memory that those before it free.
        self._pool = torch.cuda.graph_pool_handle()

    def replay(self) -> None:
        """Do what was recorded."""
        for part in self._parts:
            part()

    def begin(self) -> None:
        """Record what follows on this stream."""
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may allocate and copy meanwhile: one of them reads the store.
        self._graph.capture_begin(self._pool, capture_error_mode="thread_local")

    def end(self) -> None:
        """End the graph."""
        self._graph.capture_end()
        self._parts.append(self._graph.replay)

    def between(self, action: Action) -> None:
        """Do the action after what was recorded so far, and before what follows."""
        self.end()
        self._parts.append(action)
        self.begin()


def record(run: Callable[[torch.cuda.Stream | None], object], exchange: LatentExchange) -> Recorded:
    """The graphs of what `run` launches; `run` gets a second stream. Kernels must be compiled.

    The second stream must have no work left where processes exchange, since a graph ends there.
    """
    # The few kernels of the second stream should not queue behind a full device.
    side = torch.cuda.Stream(priority=-1)
    recorded, before = Recorded(), exchange.between
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    if free < PLENTY * total:
        # A graph takes memory of its own, and cannot take what waits here to be used again.
        gc.collect()
        torch.cuda.empty_cache()
    with torch.cuda.stream(torch.cuda.Stream()):
        recorded.begin()
        exchange.between = recorded.between
        try:
            run(side)
        except BaseException:
            with suppress(RuntimeError):  # What went wrong in `run` is the reason, not this.
                recorded.end()
            raise
        finally:
            exchange.between = before
        recorded.end()
    return recorded
