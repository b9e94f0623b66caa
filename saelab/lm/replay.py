"""Forward passes over tokens of one shape, recorded as CUDA graphs.

Python launches a pass kernel by kernel. Of a small model that takes as long as the GPU needs, and
longer where other threads want Python too, as in harvesting. A recorded pass is launched at once.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

Values = dict[str, Float[Tensor, "batch pos d_in"]]
Pass = Callable[[Int[Tensor, "batch pos"]], Values]

PLAIN = 3
"""Passes of a shape before it is recorded: fewer do not pay, and a first one loads kernels."""
KEPT = 2
"""Recorded passes at most, since each holds the memory of its pass."""
KNOWN = 16
"""Shapes whose passes are counted."""


class Recording(Protocol):
    """Makes a replayable pass of a pass and of tokens of its shape; None if that is impossible."""

    def __call__(self, run: Pass, tokens: Int[Tensor, "batch pos"], /) -> Pass | None:
        """The pass, recorded."""
        ...


class Replays:
    """The forward passes of a model, of which those of frequent shapes are recorded.

    `recording` makes what records them once the first is to be.
    """

    def __init__(self, recording: Callable[[], Recording]) -> None:
        self._recording = cache(recording)
        self._passes: OrderedDict[object, int] = OrderedDict()
        self._recorded: OrderedDict[object, Pass | None] = OrderedDict()
        self._lock = threading.Lock()

    def run(self, run: Pass, tokens: Int[Tensor, "batch pos"], hooks: Sequence[str]) -> Values:
        """What `run` gives for these tokens; `hooks` and their shape tell passes apart."""
        key = (tuple(tokens.shape), tuple(hooks))
        with self._lock:
            if key not in self._recorded and self._frequent(key):
                self._recorded[key] = self._recording()(run, tokens)
                while len(self._recorded) > KEPT:
                    self._recorded.popitem(last=False)
            if (recorded := self._recorded.get(key)) is not None:
                self._recorded.move_to_end(key)
                return recorded(tokens)
        return run(tokens)

    def _frequent(self, key: object) -> bool:
        n = self._passes.pop(key, 0)
        self._passes[key] = n + 1
        while len(self._passes) > KNOWN:
            self._passes.popitem(last=False)
        return n >= PLAIN


class CudaRecording:
    """Records passes as CUDA graphs of one memory, which so are replayed one after the other.

    All are recorded on one stream: memory is only taken again on the stream that it was taken on.
    """

    def __init__(self) -> None:
        self._pool, self._done = torch.cuda.graph_pool_handle(), torch.cuda.Event()
        self._stream: torch.cuda.Stream | None = None

    def __call__(self, run: Pass, tokens: Int[Tensor, "batch pos"]) -> Pass | None:
        """The pass, with copies as its results; None if it needs too much memory, or a number."""
        # What is made in inference mode cannot be written outside of it.
        with torch.inference_mode(mode=False):
            given = tokens.clone()
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(given.device)
        values: Values = {}
        if self._stream is None:
            self._stream = torch.cuda.Stream(given.device)
        with torch.cuda.device(given.device), torch.cuda.stream(self._stream):
            try:
                # Other threads may allocate and copy meanwhile.
                graph.capture_begin(self._pool, capture_error_mode="thread_local")
                values = run(given)
                graph.capture_end()
            except RuntimeError:  # Out of memory is one.
                with suppress(RuntimeError):
                    graph.capture_end()
                return None

        def replay(tokens: Int[Tensor, "batch pos"]) -> Values:
            stream = torch.cuda.current_stream(given.device)
            stream.wait_event(self._done)
            given.copy_(tokens, non_blocking=True)
            graph.replay()
            out = {name: value.clone() for name, value in values.items()}
            self._done.record(stream)
            return out

        return replay
