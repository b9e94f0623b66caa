"""Processes that train one SAE together: how they meet, agree, stop and fail together.

Each process runs the same program on the same rows. What they say to each other beside the numbers
of a step goes through torchrun's key-value store, which outlives a process that dies.
"""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import Store
from torch.distributed.rendezvous import rendezvous

from saelab.config import UsageError
from saelab.console import silent
from saelab.interrupt import Stopped, StopRequest
from saelab.kernels.cuda import has_triton
from saelab.owner import runs, this_process
from saelab.provenance import version_of
from saelab.ranks import Ranks

PATIENCE = timedelta(hours=2)
"""How long a process waits for the others: one may write or calibrate a large SAE."""
FIRST_SPEAKS = 5.0
"""Seconds that a process waits for the first one to say what is wrong."""
END = 5
"""Seconds in which a process says that another one has died, and ends."""
LOOK = 1.0
"""Seconds between two looks, after a SIGTERM, for processes that have died."""


class LostProcessError(UsageError):
    """Another process of the launch has ended."""

    exit_code = 1


@dataclass
class Together:
    """The processes of one launch, connected; by default this one alone.

    Attributes:
        store: torchrun's key-value store; None for one process.
        others: the other processes, as locks name them.
        said: how often each has told the others something.
    """

    ranks: Ranks = Ranks()  # noqa: RUF009 - frozen
    store: Store | None = None
    others: list[Mapping[str, Any]] = field(default_factory=list)
    said: int = 0

    @classmethod
    def meet(cls, ranks: Ranks, store: Store) -> "Together":
        """The processes, once each has said who it is."""
        met = cls(ranks, store)
        everybody = met._told(this_process())
        met.others = [each for rank, each in enumerate(everybody) if rank != ranks.rank]
        return met

    def check_same(self, facts: Mapping[str, str]) -> None:
        """Refuse processes that were not told the same, or are of another version.

        Raises:
            UsageError: names what differs, and in which process.
        """
        own = {
            "saelab": str(version_of("saelab")),
            "torch": torch.__version__,
            "triton": _triton(),
            **facts,
        }
        for rank, theirs in enumerate(self._told(own)):
            for name, value in own.items():
                if theirs.get(name) != value:
                    raise UsageError(
                        f"Process {rank} and process {self.ranks.rank} differ in {name}: "
                        f"{str(theirs.get(name))[:200]} and {value[:200]}; give all the same."
                    )

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """A context that all processes leave by the first's error if any of them fails in it.

        Raises:
            UsageError: of this process or of another one.
        """
        problem = ""
        try:
            yield
        except UsageError as error:
            if self.store is None:
                raise
            problem = str(error)
        for rank, told in enumerate(self._told({"problem": problem})):
            if told.get("problem"):
                who = "" if rank == 0 else f"Process {rank}: "
                raise UsageError(who + told["problem"])

    def check_same_step(self, own: str) -> None:
        """Refuse kinds of step that differ: each waits for what the other kind never sends.

        Raises:
            UsageError: names both kinds.
        """
        first, *others = (told[0] for told in self.all_say([own]))
        for rank, theirs in enumerate(others, 1):
            if theirs != first:
                raise UsageError(
                    f"Process 0 takes the {first} step and process {rank} the {theirs} step; "
                    "install the same packages for all, or give --step autograd."
                )

    def of_first(self, own: list[str]) -> list[str]:
        """What the first process says, in all."""
        return self.all_say(own)[0]

    def all_say(self, own: list[str]) -> list[list[str]]:
        """What each process says, by rank; all say something."""
        return [told["says"] for told in self._told({"says": own})]

    def let_first_speak(self) -> None:
        """Wait until the first process has ended; torchrun ends all once one has."""
        last = time.monotonic() + FIRST_SPEAKS
        while runs(dict(self.others[0])) and time.monotonic() < last:
            time.sleep(0.05)

    def vote(self, own: StopRequest) -> "StopRequest | Vote":
        """How the processes agree on stopping."""
        return own if self.store is None else Vote(own)

    def _told(self, own: Mapping[str, object]) -> list[Mapping[str, Any]]:
        """What every process says; all say something the same number of times."""
        if self.store is None:
            return [own]
        self.said += 1
        self.store.set(f"saelab {self.said} {self.ranks.rank}", json.dumps(own))
        keys = [f"saelab {self.said} {rank}" for rank in range(self.ranks.world)]
        return [json.loads(self.store.get(name)) for name in keys]


class Vote:
    """The signal that stops all processes: each reads the same at the same step.

    The answer is that of the step before, so that nobody waits for it.
    """

    def __init__(self, request: StopRequest) -> None:
        self._request = request
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE)
        self._cast: tuple[torch.Tensor, dist.Work] | None = None

    @property
    def signal(self) -> int | None:
        """The signal that any process had got one step ago; None if none had."""
        agreed = 0
        if self._cast is not None:
            number, work = self._cast
            work.wait()
            agreed = int(number)
        number = torch.tensor(self._request.signal or 0)
        work = dist.all_reduce(number, dist.ReduceOp.MAX, self._group, async_op=True)
        assert work is not None
        self._cast = number, work
        return agreed or None


@contextmanager
def together(ranks: Ranks, device: torch.device) -> Iterator[Together]:
    """The processes that torchrun started, connected; only the first says what is done.

    Raises:
        UsageError: they cannot be connected.
        LostProcessError: one has ended before its work was done.
    """
    store = _connected(ranks, device)
    own, lost = Together.meet(ranks, store), False
    try:
        with _watched(own), nullcontext() if ranks.leads else silent():
            yield own
    except Stopped as stopped:
        raise (stopped if ranks.leads else SystemExit(stopped.code)) from None
    except UsageError as error:
        store.set("saelab failed", "1")
        if ranks.leads:
            raise
        own.let_first_speak()
        raise SystemExit(error.exit_code) from None
    except (RuntimeError, OSError) as error:
        if not _is_loss(error):
            store.set("saelab failed", "1")
            raise
        lost = True
        raise _loss(own, str(error)) from None
    finally:
        if lost:
            _end_soon()
        elif dist.is_initialized():
            dist.destroy_process_group()


def _connected(ranks: Ranks, device: torch.device) -> Store:
    """The store of the launch, whose processes are connected then."""
    os.environ.setdefault("TORCH_NCCL_HIGH_PRIORITY", "1")  # Before kernels that can wait.
    # A fused step's module stays on the CPU, where it is judged and calibrated.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        store, rank, world = next(rendezvous("env://", timeout=PATIENCE))
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"The {ranks.world} processes of this launch cannot be connected: "
            f"{str(error).splitlines()[0][:200]}; start them by torchrun."
        ) from None
    return store


def _end_soon() -> None:
    """Let the kernel end this process in a few seconds, if it has not ended by then.

    NCCL takes leave of all processes, and would wait for the dead one: in `destroy_process_group`,
    which is not called, and maybe when Python ends.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(END)


def _triton() -> str:
    """The version of triton, which compiles the kernels of a fused step."""
    return import_module("triton").__version__ if has_triton() else "none"


def _is_loss(error: RuntimeError | OSError) -> bool:
    if isinstance(error, OSError):
        return False
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def _loss(own: Together, said: str) -> BaseException:
    """What to raise where another process is gone: an error in one process, which tells it.

    Args:
        own: this process's side.
        said: by the library that exchanges numbers; its last line may be the real reason.
    """
    store = own.store
    assert store is not None
    with contextlib.suppress(RuntimeError):  # Without torchrun, the first process keeps the store.
        if store.check(["saelab failed"]) or store.add("saelab told", 1) > 1:
            return SystemExit(1)
    return LostProcessError(
        f"One of the {own.ranks.world} processes of this training has ended, and the others "
        "cannot go on without it; run the same command again: it continues from the last "
        f"checkpoint. The exchange said: {_last_line(said)}"
    )


def _last_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "nothing."


@contextmanager
def _watched(own: Together) -> Iterator[None]:
    """A context that a process leaves after a SIGTERM even while it waits for a dead one.

    Python handles signals between two instructions, and waiting for another GPU is one.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write)
    watcher = threading.Thread(target=_end_late, args=(own, read), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(write)


def _end_late(own: Together, signals: int) -> None:
    while (received := os.read(signals, 1)) and received[0] != signal.SIGTERM:
        pass
    while received:
        time.sleep(LOOK)
        if any(runs(dict(each)) is False for each in own.others):
            if isinstance(lost := _loss(own, "nothing while a GPU waited."), LostProcessError):
                os.write(2, f"saelab: {lost}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)  # The main thread cannot be asked.
