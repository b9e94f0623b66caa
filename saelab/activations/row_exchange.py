"""Rows that processes send each other: each runs the model on a share of the contexts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from saelab.lm.protocol import ActivationSource
from saelab.ranks import Ranks

Rows = Mapping[str, Float[Tensor, "row _"]]


@dataclass(frozen=True)
class RowExchange:
    """Which hooks each process wants, of every process's rows.

    Attributes:
        wanted: the hooks, by process.
        widths: of every hook.
    """

    ranks: Ranks
    wanted: tuple[tuple[str, ...], ...]
    widths: Mapping[str, int]

    @classmethod
    def of(
        cls, lm: ActivationSource, wanted: Sequence[Sequence[str]], ranks: Ranks
    ) -> "RowExchange":
        """The exchange of these hooks, each once, by process.

        Raises:
            UsageError: a hook does not exist.
        """
        once = tuple(tuple(dict.fromkeys(hooks)) for hooks in wanted)
        return cls(ranks, once, {hook: lm.width(hook) for hooks in once for hook in hooks})

    @property
    def own(self) -> tuple[str, ...]:
        """The hooks that this process wants."""
        return self.wanted[self.ranks.rank]

    @property
    def hooks(self) -> list[str]:
        """The hooks that any process wants, each once."""
        return list(dict.fromkeys(hook for hooks in self.wanted for hook in hooks))

    def width(self, hooks: Sequence[str]) -> int:
        """Numbers of a row at these hooks together."""
        return sum(self.widths[hook] for hook in hooks)

    def rows(self, mine: Rows, counts: Sequence[int], like: Float[Tensor, "*any"]) -> list[Rows]:
        """From each process, its rows at the hooks that this one wants. Called by all together.

        Args:
            mine: this process's rows at all hooks; none if it has no contexts left.
            counts: how many rows each process has.
            like: has the rows' dtype and device.
        """
        if self.ranks.world == 1:
            return [mine]
        n = counts[self.ranks.rank]
        parts = [mine[hook].flatten() for hooks in self.wanted for hook in hooks if n]
        width = self.width(self.own)
        sizes = [count * width for count in counts]
        out = like.new_empty(sum(sizes))
        sent = torch.cat(parts) if parts else like.new_empty(0)
        dist.all_to_all_single(out, sent, sizes, [n * self.width(h) for h in self.wanted])
        found = zip(out.split(sizes), counts, strict=True)
        return [self._apart(flat, count) for flat, count in found]

    def _apart(self, flat: Float[Tensor, " n"], count: int) -> Rows:
        widths = [self.widths[hook] for hook in self.own]
        parts = flat.split([count * width for width in widths])
        shaped = zip(self.own, parts, widths, strict=True)
        return {hook: part.view(count, width) for hook, part, width in shaped}
