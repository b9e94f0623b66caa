"""What the processes of one SAE tell each other during a fused step."""

from collections.abc import Callable

import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor

from saelab.kernels.rules import FusedRule
from saelab.kernels.sizes import ceil_div, segments
from saelab.shard import LatentShard, Replicas, replicas_of

Action = Callable[[], object]
DIGITS = 256
"""Digits that are counted, of eight bits each."""
WIDE = 32
"""Bits from which on an integer, with its sign, needs eight bytes."""


class LatentExchange:
    """The exchange between the processes that hold an SAE; for one process it does nothing.

    Processes of one replica exchange codes and parts of reconstructions, which are of its rows;
    `across` the replicas go what is made of all rows.

    It happens between the step's CUDA graphs, so that any backend can do it: who records a step
    sets `between`, which ends one graph, keeps the action, and begins the next. Every method is
    called by all processes together.

    Attributes:
        shard: this process's latents; None if it holds all.
        between: does an action, or records that it is to be done here.
    """

    def __init__(self, shard: LatentShard | None = None) -> None:
        self.shard = shard
        self.between: Callable[[Action], object] = _now
        self._work: list[dist.Work] = []

    @property
    def replicas(self) -> Replicas:
        """Which rows this process reads."""
        return replicas_of(self.shard)

    def across(
        self, part: Tensor, operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM
    ) -> Tensor:
        """What the replicas' parts make together, in the memory of this one."""
        group = self.replicas.across
        if self.replicas.count > 1:
            self.between(lambda: dist.all_reduce(part, operation, group))
        return part

    def mean(self, part: Tensor) -> Tensor:
        """The mean of the replicas' parts, in the memory of this one."""
        self.across(part)
        return part if self.replicas.count == 1 else part.div_(self.replicas.count)

    def sum(self, part: Tensor) -> Tensor:
        """The sum of the parts of the latents' holders, in the memory of this one."""
        if self.shard is not None:
            self.between(lambda: dist.all_reduce(part, group=self._within))
        return part

    def begin_sum(self, part: Tensor) -> None:
        """Begin a `sum`, which `end_first` ends; other work of this process may lie between."""
        self._begin(lambda: dist.all_reduce(part, group=self._within, async_op=True))

    def begin_gather(self, own: Tensor) -> Tensor:
        """Begin a `gather`, which `end_first` ends; other work of this process may lie between."""
        every, flat = self._room(own)
        self._begin(lambda: dist.all_gather_into_tensor(flat, own, self._within, async_op=True))
        return every

    def end_first(self) -> None:
        """Let what follows read what was begun first and has not ended."""
        self.between(lambda: self._work.pop(0).wait())

    def gather(self, own: Tensor) -> Tensor:
        """`[process ...]`, the tensors of the latents' holders, which have equal shapes."""
        (every, flat), own = self._room(own), own.contiguous()
        self.between(lambda: dist.all_gather_into_tensor(flat, own, self._within))
        return every

    @property
    def _within(self) -> "dist.ProcessGroup | None":
        return self.replicas.within

    def _room(self, own: Tensor) -> tuple[Tensor, Tensor]:
        """Memory for all processes' tensors, and the same without their dimension."""
        assert self.shard is not None
        every = own.new_empty(self.shard.size, *own.shape)
        return every, every.flatten(0, 1)

    def _begin(self, start: Callable[[], dist.Work | None]) -> None:
        def begin() -> None:
            work = start()
            assert work is not None
            self._work.append(work)

        self.between(begin)

    def latents(self, own: int) -> int:
        """The most latents that a process holds, of which this one holds `own`."""
        return own if self.shard is None else self.shard.most

    def most(self, n: Int[Tensor, ""]) -> int:
        """The largest of all processes' numbers; waits for the device."""
        return int(n if self.shard is None else self.shard.most_all(n))


def fewest_segments(shard: LatentShard, batch: int) -> int:
    """No more than all processes' segments, and the same number in each of them.

    Each has `batch` rows, and one of two numbers of latents: more may be in fewer segments.
    """
    fewest = min(segments(shard.most), segments(shard.d_sae // shard.size))
    return batch * shard.replicas.count * fewest * shard.size


def row_pieces(batch: int) -> list[tuple[int, int]]:
    """The rows whose codes, or reconstructions, are told at once: first, and behind the last.

    While one half is on its way, the other is selected, decoded, or its errors computed.
    """
    half = ceil_div(batch, 2)
    return [(0, half), (half, batch)] if half < batch else [(0, batch)]


def key_bits(shard: LatentShard, *, half: bool) -> int:
    """Bits of an integer that ranks an entry: its size, which has no sign, and its latent."""
    return (15 if half else 31) + (shard.d_sae - 1).bit_length()


def received(
    rule: FusedRule, shard: LatentShard, batch: int, d_in: int, d_out: int, *, half: bool
) -> list[int]:
    """Bytes that each process receives in every exchange of a step without AuxK and clipping.

    A sum goes around a ring. What all ask before a step, single numbers, is not among them.

    Args:
        rule: the SAE's.
        shard: of any of the processes.
        batch: rows.
        d_in: their width where they are read.
        d_out: their width where they are reconstructed.
        half: whether products are in bfloat16.
    """
    others = shard.size - 1

    def summed(n: int) -> int:
        return 2 * others * n // shard.size

    found = []
    if rule.by_row:
        most = rule.budgets[-1] if rule.budgets else int(rule.k)
        size = 4 if key_bits(shard, half=half) < WIDE else 8
        found += [others * (end - row) * most * size for row, end in row_pieces(batch)]
    elif rule.over_batch:
        listed = int(rule.k * batch) <= fewest_segments(shard, batch)
        found += (1 + listed) * (2 if half else 4) * [summed(DIGITS * 4)]
        found += [others * n for n in (4 * batch, shard.most, 4)]
    found += [summed(rule.groups * (end - row) * d_out * 4) for row, end in row_pieces(batch)]
    if rule.jump is not None:
        found.append(summed(4))
    return [*found, summed(4 * d_in)] if rule.centres else found


def averaged(latents: int, d_in: int, d_out: int, replicas: int) -> int:
    """Bytes that a process with so many latents receives when replicas average their gradients."""
    return 2 * (replicas - 1) * 4 * latents * (d_in + d_out + 2) // replicas


def _now(action: Action) -> object:
    return action()


ALONE = LatentExchange()
"""That of one process."""
