"""Processes that train one SAE together: how they meet, agree, stop and fail together.

Each process runs the same program on the same rows. What they say to each other beside the numbers
of a step goes through torchrun's key-value store, which outlives a process that dies.
"""

import json
import os
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
from saelab.shard import ALONE, Replicas
from saelab.training.lost import end_soon, is_loss, loss, watched

PATIENCE = timedelta(hours=2)
"""How long a process waits for the others: one may write or calibrate a large SAE."""
FIRST_SPEAKS = 5.0
"""Seconds that a process waits for the first one to say what is wrong."""


@dataclass
class Together:
    """The processes of one launch, connected; by default this one alone.

    Attributes:
        store: torchrun's key-value store; None for one process.
        others: the other processes, as locks name them.
        said: how often each has told the others something.
        replicas: which replica of the SAEs this process belongs to.
    """

    ranks: Ranks = Ranks()  # noqa: RUF009 - frozen
    store: Store | None = None
    others: list[Mapping[str, Any]] = field(default_factory=list)
    said: int = 0
    replicas: Replicas = ALONE

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

    def replicate(self, count: int) -> None:
        """Make the processes so many replicas, each of which reads a part of every batch.

        Raises:
            UsageError: they do not share out evenly.
        """
        self.check_same({"--replicas": str(count)})
        if (world := self.ranks.world) % count:
            there = f"{world} processes of this launch" if world > 1 else "one process there is"
            raise UsageError(
                f"--replicas {count} does not divide the {there}; start {count} or a multiple by "
                "torchrun, or take another number."
            )
        self.replicas = Replicas.connect_all(self.ranks.rank, world, count, PATIENCE)

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
def together(ranks: Ranks, device: torch.device, replicas: int = 1) -> Iterator[Together]:
    """The processes that torchrun started, connected; only the first says what is done.

    Raises:
        UsageError: they cannot be connected, or not be so many replicas.
        LostProcessError: one has ended before its work was done.
    """
    store = _connected(ranks, device)
    own, lost = Together.meet(ranks, store), False
    try:
        with watched(store, ranks.world, own.others), nullcontext() if ranks.leads else silent():
            own.replicate(replicas)
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
        if not is_loss(error):
            store.set("saelab failed", "1")
            raise
        lost = True
        raise loss(store, ranks.world, str(error)) from None
    finally:
        if lost:
            end_soon()
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


def _triton() -> str:
    """The version of triton, which compiles the kernels of a fused step."""
    return import_module("triton").__version__ if has_triton() else "none"
