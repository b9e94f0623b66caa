"""What a process does when another process of its launch has ended."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch.distributed import Store

from saelab.config import UsageError
from saelab.owner import runs

END = 5
"""Seconds in which a process says that another one has died, and ends."""
LOOK = 1.0
"""Seconds between two looks, after a SIGTERM, for processes that have died."""


class LostProcessError(UsageError):
    """Another process of the launch has ended."""

    exit_code = 1


def end_soon() -> None:
    """Let the kernel end this process in a few seconds, if it has not ended by then.

    NCCL takes leave of all processes, and would wait for the dead one: in `destroy_process_group`,
    which is not called, and maybe when Python ends.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(END)


def is_loss(error: RuntimeError | OSError) -> bool:
    """Whether this error says that another process is gone."""
    if isinstance(error, OSError):
        return False
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def loss(store: Store, world: int, said: str) -> BaseException:
    """What to raise where one of `world` processes is gone; one process tells it.

    Args:
        store: that of the launch.
        world: how many processes there were.
        said: by the library that exchanges numbers; its last line may be the real reason.
    """
    with contextlib.suppress(RuntimeError):  # Without torchrun, the first process keeps the store.
        if store.check(["saelab failed"]) or store.add("saelab told", 1) > 1:
            return SystemExit(1)
    return LostProcessError(
        f"One of the {world} processes of this training has ended, and the others "
        "cannot go on without it; run the same command again: it continues from the last "
        f"checkpoint. The exchange said: {_last_line(said)}"
    )


def _last_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "nothing."


@contextmanager
def watched(store: Store, world: int, others: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """A context that a process leaves after a SIGTERM even while it waits for a dead one.

    Python handles signals between two instructions, and waiting for another GPU is one. The
    `others` are as locks name them.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write)
    watcher = threading.Thread(target=_end_late, args=(store, world, others, read), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(write)


def _end_late(store: Store, world: int, others: Sequence[Mapping[str, Any]], signals: int) -> None:
    while (received := os.read(signals, 1)) and received[0] != signal.SIGTERM:
        pass
    while received:
        time.sleep(LOOK)
        if any(runs(dict(each)) is False for each in others):
            if isinstance(
                lost := loss(store, world, "nothing while a GPU waited."), LostProcessError
            ):
                os.write(2, f"saelab: {lost}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)  # The main thread cannot be asked.
