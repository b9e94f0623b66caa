"""One SAE spread over processes: each holds some of its latents, and all read the same rows.

Process r of n holds the latents r, r + n, r + 2n, ..., so that each has its share of every prefix.
What is exchanged are the candidates of the selection and the sum of the processes' parts of the
reconstruction; the gradients of a latent's weights never leave the process that holds it (as in the
code of arXiv 2406.04093, which shards latents too).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
class LatentShard:
    """The latents that this process holds: those with index `rank` modulo `size`.

    Every method with the word "all" in its name is called by all processes together.

    Attributes:
        d_sae: latents of the whole SAE.
    """

    rank: int
    size: int
    d_sae: int

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

        The pieces are on the CPU of process 0; there are none elsewhere. No process ever holds more
        than its part and a piece.
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
        """All processes' numbers, which are at least 0; each has at most so many."""
        padded = own.new_full((most,), -1.0)
        padded[: len(own)] = own
        every = torch.cat(self._gather_all(padded))
        return every[every >= 0]

    def sum_all(self, part: Tensor) -> Tensor:
        """The sum of the processes' parts. Its gradient is the same for each part."""
        return _Sum.apply(part)

    def most_all(self, number: Tensor) -> Tensor:
        """The largest of the processes' numbers."""
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

        Flat codes are compared over the whole batch, `int(k * batch)` in number, others row by row.
        Of equal ones, the first latent wins, in a batch the first row. Magnitudes are compared.

        Args:
            codes: of this process's latents, at least as many as can be among the k largest.
            k: number of codes per row, on average for flat codes.
        """
        latent = codes.indices * self.size + self.rank
        size = codes.values.detach().abs()
        if codes.offsets is None:
            kept = self._among_all(size, latent, int(k))
        else:
            place, n = codes.rows() * self.d_sae + latent, int(k * len(codes))
            kept = self._among_all(size[None], place[None], n)[0]
        return codes.where(kept)

    def _among_all(
        self, sizes: Float[Tensor, "row own"], places: Int[Tensor, "row own"], n: int
    ) -> Bool[Tensor, "row own"]:
        """Which of this process's entries are among the n largest of each row's, over all."""
        own = sizes.shape[1]
        width = int(self.most_all(torch.tensor(own, device=sizes.device)))
        padded = sizes.new_full((len(sizes), width), -1.0), places.new_zeros(len(sizes), width)
        for out, given in zip(padded, (sizes, places), strict=True):
            out[:, :own] = given
        every, where = (torch.cat(self._gather_all(each), dim=1) for each in padded)
        by_place = where.argsort(dim=1)
        ranked = every.gather(1, by_place).argsort(dim=1, descending=True, stable=True)
        chosen = by_place.gather(1, ranked[:, :n])
        marks = torch.zeros_like(every, dtype=torch.bool).scatter_(1, chosen, value=True)
        return marks[:, self.rank * width : self.rank * width + own]

    def tell_all(self, text: str, device: torch.device) -> list[str]:
        """What every process says, in ASCII and of equal length."""
        own = torch.tensor(list(text.encode("ascii")), dtype=torch.uint8, device=device)
        return [bytes(each.tolist()).decode("ascii") for each in self._gather_all(own)]

    def _gather_all(self, own: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own.contiguous())
        return parts

    def _gather(self, own: Tensor) -> list[Tensor]:
        """All processes' tensors, on process 0; elsewhere nothing."""
        parts = None if self.rank else [torch.empty_like(own) for _ in range(self.size)]
        dist.gather(own.contiguous(), parts)
        return parts or []


def _corner(of: Tensor, like: Tensor) -> Tensor:
    """The first entries of a tensor, as many along each dimension as another has."""
    return of[tuple(slice(0, n) for n in like.shape)]


class _Sum(torch.autograd.Function):
    @staticmethod
    @override
    def forward(ctx: Any, part: Tensor) -> Tensor:
        out = part.clone()
        dist.all_reduce(out)
        return out

    @staticmethod
    @override
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


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
