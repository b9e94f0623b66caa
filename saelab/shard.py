"""One SAE spread over processes: each holds some of its latents, and all read the same rows.

Process r of n holds the latents r, r + n, r + 2n, ..., so that each has its share of every prefix.
What is exchanged are the candidates of the selection and the sum of the processes' parts of the
reconstruction; the gradients of a latent's weights never leave the process that holds it (as in the
code of arXiv 2406.04093, which shards latents too).

With replicas, the processes have two dimensions: each replica is such a spread SAE, reads its own
part of the rows of every batch, and the gradients of all replicas are averaged.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor
from typing_extensions import override

from saelab.types import SparseCodes

PIECE = 1 << 24
"""Numbers of a tensor that are gathered at a time."""


@dataclass(frozen=True)
class Replicas:
    """Which of `count` replicas of an SAE this process belongs to, and so which rows it reads.

    Every method with the word "all" in its name is called by all processes together. With one
    replica they exchange nothing and return what they get.

    Attributes:
        within: the processes of this replica; None: all that there are.
        across: of every replica, the process that holds this one's latents, in the replicas' order.
    """

    number: int = 0
    count: int = 1
    within: "dist.ProcessGroup | None" = None
    across: "dist.ProcessGroup | None" = None

    @classmethod
    def connect_all(
        cls, rank: int, world: int, count: int, timeout: timedelta | None = None
    ) -> "Replicas":
        """The place of process `rank` of `world`, where `count` replicas share them out.

        Consecutive processes are one replica: they are on one host, and tell each other most.
        """
        if count == 1:
            return cls()
        size = world // count
        ranks = torch.arange(world).view(count, size)
        within, across = (
            dist.new_subgroups_by_enumeration(each.tolist(), timeout)[0]
            for each in (ranks, ranks.T)
        )
        assert isinstance(within, dist.ProcessGroup)
        assert isinstance(across, dist.ProcessGroup)
        return cls(rank // size, count, within, across)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Replicas":
        """The same: a copy of an SAE is reached through the same processes."""
        return self

    def rows(self, batch: int) -> slice:
        """This replica's rows of a batch that all share out."""
        own = batch // self.count
        return slice(self.number * own, (self.number + 1) * own)

    def sum_all(self, part: Tensor) -> Tensor:
        """The sum of the replicas' parts, as a tensor of its own."""
        if self.count == 1:
            return part
        out = part.detach().clone()
        dist.all_reduce(out, group=self.across)
        return out

    def mean_all(self, part: Tensor) -> Tensor:
        """The mean of the parts, whose gradient is as each part's: gradients are averaged later."""
        return part if self.count == 1 else _Sum.apply(part, self.across, self.count)

    def average_all(self, parts: Iterable[Tensor]) -> None:
        """Turn each of these tensors into the mean of the replicas' ones."""
        for part in parts if self.count > 1 else ():
            total = part.contiguous()
            dist.all_reduce(total, group=self.across)
            torch.div(total, self.count, out=part)


ALONE = Replicas()
"""One replica, which reads all rows."""


def replicas_of(shard: "LatentShard | None") -> Replicas:
    """The replicas of an SAE, of which this process has this shard; None: one process has all."""
    return ALONE if shard is None else shard.replicas


@dataclass(frozen=True)
class LatentShard:
    """The latents that this process holds: those with index `rank` modulo `size`.

    Every method with the word "all" in its name is called by all processes together.

    Attributes:
        size: processes that hold the latents together, those of one replica.
        d_sae: latents of the whole SAE.
    """

    rank: int
    size: int
    d_sae: int
    replicas: Replicas = ALONE

    @property
    def leads(self) -> bool:
        """Whether this process writes the common files."""
        return self.rank == 0 and self.replicas.number == 0

    def count(self, prefix: int) -> int:
        """How many of the latents before `prefix` this process holds; they are its first ones."""
        return max(0, -(-(prefix - self.rank) // self.size))

    @property
    def most(self) -> int:
        """The most latents that a process holds."""
        return -(-self.d_sae // self.size)

    def of(self, whole: Tensor, dim: int) -> Tensor:
        """This process's part of a tensor whose dimension `dim` counts latents."""
        index = torch.arange(self.rank, self.d_sae, self.size, device=whole.device)
        return whole.index_select(dim, index)

    def pieces_all(self, own: Tensor, dim: int) -> Iterator[Tensor]:
        """The whole tensor from every process's part, row after row, a piece of rows at a time.

        The pieces are on the CPU of process 0 of each replica; there are none elsewhere. No process
        ever holds more than its part and a piece.
        """
        own, shape = own.detach(), list(own.shape)
        shape[dim], rows = self.most, max(1, PIECE // max(1, own[0].numel() * self.size))
        for start in range(0, shape[0], rows):
            part = own[start : start + rows]
            sent = own.new_zeros([min(rows, shape[0] - start), *shape[1:]])
            _corner(sent, part).copy_(part)
            parts = self._gather(sent)
            if self.rank:
                continue
            sizes = [*sent.shape]
            sizes[dim] = (
                self.d_sae if dim else min(rows * self.size, self.d_sae - start * self.size)
            )
            whole = own.new_empty(sizes, device="cpu")
            for rank, given in enumerate(parts):
                place = whole.movedim(dim, 0)[rank :: self.size].movedim(0, dim)
                place.copy_(_corner(given, place))
            yield whole

    def join_all(self, own: Tensor, dim: int) -> Tensor | None:
        """The whole tensor, on the CPU of process 0, from every process's part; else None."""
        pieces = [*self.pieces_all(own, dim)]
        return torch.cat(pieces) if pieces else None

    def numbers_all(self, own: Float[Tensor, " own"], most: int) -> Float[Tensor, " every"]:
        """The numbers of all latents' holders, which are at least 0; each has at most so many."""
        padded = own.new_full((most,), -1.0)
        padded[: len(own)] = own
        every = torch.cat(self._gather_all(padded, self.replicas.within))
        return every[every >= 0]

    def sum_all(self, part: Tensor) -> Tensor:
        """The sum of the parts of the latents' holders. Its gradient is the same for each part."""
        return _Sum.apply(part, self.replicas.within, 1)

    def most_all(self, number: Tensor) -> Tensor:
        """The largest of the processes' numbers, those of every replica."""
        out = number.clone()
        dist.all_reduce(out, dist.ReduceOp.MAX)
        return out

    def smallest_of_all(self, values: Float[Tensor, "*entry"]) -> Float[Tensor, " 1"]:
        """The smallest active magnitude of all processes' values; infinite if none is active."""
        size = values.detach().abs().flatten()
        active = torch.where(size > 0, size, torch.inf)
        out = torch.cat([active, active.new_full((1,), torch.inf)]).amin(dim=0, keepdim=True)
        dist.all_reduce(out, dist.ReduceOp.MIN)
        return out

    def any_all(self, condition: Tensor) -> bool:
        """Whether the condition holds in any process."""
        return bool(self.most_all(condition.int()))

    def largest_of_all(self, codes: SparseCodes, k: float | int) -> SparseCodes:
        """Of each process's largest codes, those among the k largest of all its rows' codes.

        Flat codes are compared over the whole batch, `int(k * batch)` in number and those of the
        replicas' rows among them, others row by row.
        Of equal ones, the first latent wins, in a batch the first row. Magnitudes are compared.

        Args:
            codes: of this process's latents, at least as many as can be among the k largest.
            k: number of codes per row, on average for flat codes.
        """
        latent = codes.indices * self.size + self.rank
        size = codes.values.detach().abs()
        if codes.offsets is None:
            kept = self._among_all(size, latent, int(k), self.replicas.within)
        else:
            batch = len(codes) * self.replicas.count
            row = self.replicas.rows(batch).start + codes.rows()
            place = (row * self.d_sae + latent)[None]
            kept = self._among_all(size[None], place, int(k * batch), None)[0]
        return codes.where(kept)

    def candidates(self, k: float | int, *, over_batch: bool) -> float | int:
        """How many codes per row a process gives to `largest_of_all`, on average of a batch.

        All of a batch may be in the rows of one replica.
        """
        if over_batch and self.replicas.count > 1:
            k = math.ceil(k * self.replicas.count)
        return min(k, self.count(self.d_sae))

    def _among_all(
        self,
        sizes: Float[Tensor, "row own"],
        places: Int[Tensor, "row own"],
        n: int,
        group: "dist.ProcessGroup | None",
    ) -> Bool[Tensor, "row own"]:
        """Which of this process's entries are among the n largest of each row's, in the group."""
        own, rank = sizes.shape[1], dist.get_rank(group)
        width = int(self.most_all(torch.tensor(own, device=sizes.device)))
        padded = sizes.new_full((len(sizes), width), -1.0), places.new_zeros(len(sizes), width)
        for out, given in zip(padded, (sizes, places), strict=True):
            out[:, :own] = given
        every, where = (torch.cat(self._gather_all(each, group), dim=1) for each in padded)
        by_place = where.argsort(dim=1)
        ranked = every.gather(1, by_place).argsort(dim=1, descending=True, stable=True)
        chosen = by_place.gather(1, ranked[:, :n])
        marks = torch.zeros_like(every, dtype=torch.bool).scatter_(1, chosen, value=True)
        return marks[:, rank * width : rank * width + own]

    def tell_all(self, text: str, device: torch.device) -> list[str]:
        """What every process says, replica after replica, in ASCII and of equal length."""
        own = torch.tensor(list(text.encode("ascii")), dtype=torch.uint8, device=device)
        return [bytes(each.tolist()).decode("ascii") for each in self._gather_all(own, None)]

    def _gather_all(self, own: Tensor, group: "dist.ProcessGroup | None") -> list[Tensor]:
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, own.contiguous(), group)
        return parts

    def _gather(self, own: Tensor) -> list[Tensor]:
        """The tensors of all latents' holders, on their process 0; elsewhere nothing."""
        parts = None if self.rank else [torch.empty_like(own) for _ in range(self.size)]
        dist.gather(own.contiguous(), parts, group=self.replicas.within, group_dst=0)
        return parts or []


def _corner(of: Tensor, like: Tensor) -> Tensor:
    """The first entries of a tensor, as many along each dimension as another has."""
    return of[tuple(slice(0, n) for n in like.shape)]


class _Sum(torch.autograd.Function):
    """The sum over a group, divided by a number; each part gets the gradient as it is."""

    @staticmethod
    @override
    def forward(ctx: Any, part: Tensor, group: "dist.ProcessGroup | None", divisor: int) -> Tensor:
        out = part.clone()
        dist.all_reduce(out, group=group)
        return out if divisor == 1 else out / divisor

    @staticmethod
    @override
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0], None, None


def latent_dims(make: Callable[[int], dict[str, Tensor]], d_sae: int) -> dict[str, int]:
    """For each tensor that counts latents, the dimension that does.

    Args:
        make: the tensors of an SAE with so many latents, by name; on the meta device.
        d_sae: a number of latents that `make` takes, as it does twice that number.
    """
    once, twice = make(d_sae), make(2 * d_sae)
    return {
        name: next(i for i, n in enumerate(tensor.shape) if n != twice[name].shape[i])
        for name, tensor in once.items()
        if tensor.shape != twice[name].shape
    }
