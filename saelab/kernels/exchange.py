"""What the processes of one SAE tell each other during a fused step."""

from collections.abc import Callable

import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor

from saelab.shard import LatentShard

Action = Callable[[], object]


class LatentExchange:
    """The exchange between the processes that hold an SAE; for one process it does nothing.

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

    def sum(self, part: Tensor) -> Tensor:
        """The sum of the processes' parts, in the memory of this one."""
        if self.shard is not None:
            self.between(lambda: dist.all_reduce(part))
        return part

    def begin_sum(self, part: Tensor) -> None:
        """Begin a `sum`, which `end_sum` ends; other work of this process may lie between."""

        def begin() -> None:
            work = dist.all_reduce(part, async_op=True)
            assert work is not None
            self._work.append(work)

        self.between(begin)

    def end_sum(self) -> None:
        """Let what follows read the sum that was begun."""
        self.between(lambda: self._work.pop().wait())

    def gather(self, own: Tensor) -> Tensor:
        """`[process ...]`, all processes' tensors, which have equal shapes."""
        assert self.shard is not None
        every, own = own.new_empty(self.shard.size, *own.shape), own.contiguous()
        flat = every.flatten(0, 1)
        self.between(lambda: dist.all_gather_into_tensor(flat, own))
        return every

    def latents(self, own: int) -> int:
        """The most latents that a process holds, of which this one holds `own`."""
        return own if self.shard is None else self.shard.most

    def most(self, n: Int[Tensor, ""]) -> int:
        """The largest of the processes' numbers; waits for the device."""
        return int(n if self.shard is None else self.shard.most_all(n))


def _now(action: Action) -> object:
    return action()


ALONE = LatentExchange()
"""That of one process."""
