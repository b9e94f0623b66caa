"""Next-token predictions at some positions; their logits are made in pieces."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override

NUMBERS_AT_ONCE = {"cpu": 2**24, "cuda": 2**26}
"""Logits per piece, by device: 64 MiB and 256 MiB in float32. A few copies of a piece are in
memory."""

Unembed = Callable[[Float[Tensor, "n d_model"]], Float[Tensor, "n d_vocab"]]


def rows_at_once(d_vocab: int, device: torch.device) -> int:
    """How many rows of `d_vocab` numbers are processed at a time."""
    return max(1, NUMBERS_AT_ONCE.get(device.type, 2**24) // d_vocab)


@dataclass(frozen=True)
class Predictions:
    """A model's next-token predictions at n positions, stored as the unembedding's input.

    Attributes:
        hidden: the final norm's output. If the model's unembedding cannot be separated, `unembed`
            is None and these are the logits.
        unembed: maps rows of `hidden` to their logits.
        d_vocab: number of logits per row.
    """

    hidden: Float[Tensor, "n _"]
    unembed: Unembed | None
    d_vocab: int

    def __len__(self) -> int:
        """Number of positions."""
        return len(self.hidden)

    def logits(self, part: slice = slice(None)) -> Float[Tensor, "m d_vocab"]:
        """The logits of a part of the positions, in the model's dtype."""
        rows = self.hidden[part]
        return rows if self.unembed is None else self.unembed(rows)

    def pieces(self) -> Iterator[slice]:
        """The positions in parts so small that their logits fit in memory several times."""
        step = rows_at_once(self.d_vocab, self.hidden.device)
        for first in range(0, len(self), step):
            yield slice(first, min(first + step, len(self)))

    def log_probs(self, tokens: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The log-probability of one token at each position."""
        found = [
            exact(self.logits(part)).log_softmax(-1).gather(1, tokens[part, None])[:, 0]
            for part in self.pieces()
        ]
        return torch.cat(found) if found else exact(self.hidden.new_zeros(0))

    def total(
        self, loss: Callable[[Float[Tensor, "m d_vocab"], slice], Float[Tensor, ""]]
    ) -> Float[Tensor, ""]:
        """The sum over all pieces of `loss(logits, part)`, in float32 at least.

        It is differentiable in `hidden` only: each piece's gradient is computed while its logits
        are in memory, so the backward pass does not make them again.
        """
        return _Total.apply(self.hidden, self, loss)


def exact(logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The tensor in float32, or in float64 if it is float64."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class _Total(torch.autograd.Function):
    @staticmethod
    @override
    def forward(ctx: Any, hidden: Tensor, of: Predictions, loss: Callable[..., Tensor]) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        gradient = torch.zeros_like(hidden) if wanted else None
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        for part in of.pieces():
            rows = hidden[part].detach().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                logits = rows if of.unembed is None else of.unembed(rows)
                value = loss(exact(logits), part)
            total += value.detach()
            if gradient is not None:
                (gradient[part],) = torch.autograd.grad(value, rows)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total.to(torch.promote_types(hidden.dtype, torch.float32))

    @staticmethod
    @once_differentiable
    @override
    # pyrefly: ignore[bad-override]
    def backward(ctx: Any, grad: Float[Tensor, ""]) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grad).to(gradient.dtype), None, None
