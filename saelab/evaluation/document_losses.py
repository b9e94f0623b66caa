"""Cross-entropies of one text under several conditions, with intervals over its documents."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F

from saelab.config import UsageError
from saelab.evaluation.downstream import counted_positions
from saelab.evaluation.jackknife import jackknife
from saelab.host.text import Text
from saelab.lm.predictions import Predictions
from saelab.lm.protocol import ModelOutput

N_GROUPS = 20
"""Groups of documents, each left out once for an interval."""

C = TypeVar("C", bound=Hashable)


class Recovered(NamedTuple):
    """A share of cross-entropy recovered, and the ends of its 95 % interval.

    The ends are None if the text has too few documents.
    """

    value: float
    low: float | None
    high: float | None


class DocumentLosses(Generic[C]):
    """Cross-entropies by condition, summed by groups of documents; a document is in one group."""

    def __init__(self) -> None:
        self.groups: dict[int, int] = {}
        self.n = torch.zeros(N_GROUPS, dtype=torch.float64)
        self.ce: dict[C, Tensor] = {}

    def batch(self, text: Text, mask: Bool[Tensor, "context pos"]) -> "BatchLosses[C]":
        """A batch to be added; positions count whose own and next token are in `mask`."""
        where = F.pad(counted_positions(mask), (0, 1))
        of_context = torch.tensor(self._dealt(text.contexts.document.tolist()))
        group = of_context[:, None].expand(where.shape)[where.cpu()]
        self.n.index_add_(0, group, torch.ones(len(group), dtype=torch.float64))
        return BatchLosses(self, where, text.tokens[:, 1:][where[:, :-1]], group)

    def _dealt(self, documents: Sequence[int]) -> list[int]:
        """The group of each document, dealt as they come."""
        return [
            self.groups.setdefault(document, len(self.groups)) % N_GROUPS for document in documents
        ]

    def check(self, what: str) -> None:
        """Refuse a text without positions; `what` is done to it.

        Raises:
            UsageError: nothing was counted.
        """
        if not self.n.sum():
            raise UsageError(f"The text has no two tokens in a row to {what}; give more text.")

    @property
    def n_tokens(self) -> int:
        """Positions counted."""
        return int(self.n.sum())

    def mean(self, condition: C) -> float:
        """Cross-entropy, nats per token."""
        return float(self.ce[condition].sum() / self.n.sum())

    def recovered(self, condition: C, *, best: C, worst: C) -> Recovered:
        """(CE_worst - CE) / (CE_worst - CE_best), with an interval over documents."""
        ce, low, high = (self.ce[name] for name in (condition, worst, best))
        sums = torch.stack([low - ce, low - high], dim=1)
        found = jackknife(sums, lambda s: (s[0] / s[1])[None], (self.n > 0)[:, None])
        value, *ends = (float(end[0]) for end in found)
        # Without enough documents, and of what the scale is made of, there is no interval.
        known = ends[0] == ends[0] and condition not in (best, worst)
        return Recovered(value, *(ends if known else (None, None)))


@dataclass(frozen=True)
class BatchLosses(Generic[C]):
    """The positions of a batch whose predictions count.

    Attributes:
        where: these positions.
        target: the token after each.
        group: the group of each one's document.
    """

    totals: DocumentLosses[C]
    where: Bool[Tensor, "context pos"]
    target: Int[Tensor, " n"]
    group: Int[Tensor, " n"]

    def add(self, condition: C, out: ModelOutput) -> Predictions:
        """Add the losses of `out` and return its predictions at the counted positions."""
        predictions = out.at(self.where)
        losses = -predictions.log_probs(self.target).double().cpu()
        total = self.totals.ce.setdefault(condition, torch.zeros_like(self.totals.n))
        total.index_add_(0, self.group, losses)
        return predictions
