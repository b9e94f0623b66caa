"""A second CUDA stream, if there is one."""

from contextlib import AbstractContextManager, nullcontext

import torch


def on(side: torch.cuda.Stream | None) -> AbstractContextManager[object]:
    """A context in which work goes to the second stream, if there is one."""
    return nullcontext() if side is None else torch.cuda.stream(side)


def wait(waiting: torch.cuda.Stream | None, done: torch.cuda.Stream | None) -> None:
    """Make one stream wait for the other's queued work; None is the current stream."""
    if waiting is not done:
        current = torch.cuda.current_stream()
        (waiting or current).wait_stream(done or current)
