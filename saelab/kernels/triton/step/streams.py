"""A second stream of a device's work, where there is one."""

from contextlib import AbstractContextManager, nullcontext

import torch


def on(side: torch.cuda.Stream | None) -> AbstractContextManager[object]:
    """Where work goes to the second stream, if there is one."""
    return nullcontext() if side is None else torch.cuda.stream(side)


def wait(waiting: torch.cuda.Stream | None, done: torch.cuda.Stream | None) -> None:
    """Let one stream wait for what the other has been given; None stands for the current one."""
    if waiting is not done:
        current = torch.cuda.current_stream()
        (waiting or current).wait_stream(done or current)
