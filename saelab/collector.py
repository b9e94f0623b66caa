"""What is imported stays out of garbage collections, in processes of the `saelab` command.

A language model's packages are 700,000 objects that live to the end, and collections look at all of
them several times while they are imported, and again when the process ends. In a process that only
uses saelab as a library, the collector is its owner's, and nothing here has an effect.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from typing import TypeVar

T = TypeVar("T")

_ours = False


def whole_process(work: Callable[[], T]) -> T:
    """Do `work`, which is all that this process is for.

    What there is behind it is not searched for garbage. Nothing waits for that: what must be done
    at the end is done by `with` blocks and by `weakref.finalize`, which does it at exit.
    """
    global _ours  # noqa: PLW0603 - the collector is the process's, too
    _ours = True
    try:
        return work()
    finally:
        gc.freeze()


@contextmanager
def paused() -> Iterator[None]:
    """A context without collections, in the main thread of a process that is the command's."""
    pauses = _ours and gc.isenabled() and current_thread() is main_thread()
    if pauses:
        gc.disable()
    try:
        yield
    finally:
        if pauses:
            gc.enable()


def keep_imported() -> None:
    """Leave what is there out of all later collections, in a process that is the command's.

    To be called before the first model is built: what is kept out, and is part of a circle of
    references, is never freed. A second call has no effect.
    """
    if _ours and not gc.get_freeze_count():
        gc.freeze()
