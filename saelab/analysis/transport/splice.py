"""Whether the model runs on transported activations, and on latents read from them.

At the later site of the live model every row is replaced: by the transported row, or by the SAE's
reconstruction of it. CE recovered is 1 for the plain model and 0 for the mean at every token:
(CE_mean - CE) / (CE_mean - CE_plain), on text that no harvest uses.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from saelab.activations.corpus import Corpus
from saelab.analysis.transport.jackknife import jackknife
from saelab.analysis.transport.moments import Pair
from saelab.analysis.transport.ranked import RankedMaps
from saelab.analysis.transport.records import Spliced, SpliceName
from saelab.analysis.transport.rows import MOST_GROUPS
from saelab.config import UsageError
from saelab.console import progress
from saelab.evaluation.downstream import counted_positions
from saelab.host.host import Host
from saelab.host.text import Text, read_text
from saelab.lm.edits import replace_rows
from saelab.lm.protocol import ModelOutput
from saelab.sae.base import AbstractSAE
from saelab.training.domain import norms

Condition = tuple[SpliceName, int | None]


@dataclass(frozen=True)
class Splicer:
    """A pair of sites in the live model.

    Attributes:
        maps: maps of every rank between them.
        ranks: ranks to run with; the SAE reads the rows of the largest.
        limits: largest norm of a row that is replaced, by site.
    """

    host: Host
    pair: Pair
    maps: RankedMaps
    ranks: Sequence[int]
    limits: Mapping[str, float]

    def rows(
        self, x: Float[Tensor, "row d_in"], y: Float[Tensor, "row d_out"]
    ) -> Iterator[tuple[Condition, Float[Tensor, "row d_out"]]]:
        """What replaces the rows `y` of the later site, `x` being those of the earlier one."""
        mean_x, mean_y = self.maps.mean_x.to(x), self.maps.mean_y.to(x)
        yield ("mean", None), mean_y.expand_as(y)
        if x.shape == y.shape:
            yield ("identity", None), x + (mean_y - mean_x)
        carried = y
        for rank in self.ranks:
            U, P = self.maps.U[:, :rank].to(x), self.maps.P[:, :rank].to(x)
            carried = mean_y + (x - mean_x) @ U @ P.T
            yield ("transported", rank), carried
        if self.pair[1] == self.host.writes and not self.host.is_transcoder:
            yield ("sae", None), _reconstruction(self.host.sae, y)
            yield ("sae-transported", self.ranks[-1]), _reconstruction(self.host.sae, carried)

    def kept(self, seen: Mapping[str, Tensor]) -> Bool[Tensor, "context pos"]:
        """The positions with a norm within the limits."""
        inside = torch.ones(seen[self.pair[0]].shape[:2], dtype=torch.bool)
        for site, limit in self.limits.items():
            inside = inside.to(seen[site].device) & (norms(seen[site]) <= limit)
        return inside


@torch.no_grad()
def splice(
    splicer: Splicer, corpus: Corpus, *, n_tokens: int, batch_size: int
) -> tuple[Spliced, ...]:
    """The model's cross-entropy on each kind of rows, with intervals over documents.

    Raises:
        UsageError: the text has no two tokens in a row.
    """
    lm, host, totals = splicer.host.lm, splicer.host, _Totals()
    with progress("Splice", n_tokens, "tokens") as bar:
        for text in read_text(host, corpus, n_tokens=n_tokens, batch_size=batch_size):
            out = lm.run(text.tokens, hooks=list(dict.fromkeys(splicer.pair)))
            seen = out.activations
            mask = text.mask & splicer.kept(seen).to(text.mask.device)
            if not bool(mask.any()):
                continue
            x, y = (seen[site][mask].float() for site in splicer.pair)
            count = _Counted.of(text, mask, totals)
            count.add(("plain", None), out)
            for condition, rows in splicer.rows(x, y):
                edit = {splicer.pair[1]: replace_rows(mask, rows)}
                count.add(condition, lm.run(text.tokens, edits=edit))
            bar.advance(int(mask.sum()))
    return totals.results()


def _reconstruction(sae: AbstractSAE, rows: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
    rows = rows.to(sae.W_dec.dtype)
    return sae.decode(sae.encode(rows), rows)


class _Totals:
    """Cross-entropies summed by groups of documents; a document is in one group."""

    def __init__(self) -> None:
        self.groups: dict[int, int] = {}
        self.n = torch.zeros(MOST_GROUPS, dtype=torch.float64)
        self.ce: dict[Condition, Tensor] = {}

    def group(self, documents: Sequence[int]) -> list[int]:
        """The group of each document, dealt as they come."""
        return [
            self.groups.setdefault(document, len(self.groups)) % MOST_GROUPS
            for document in documents
        ]

    def results(self) -> tuple[Spliced, ...]:
        if not self.n.sum():
            raise UsageError("The text has no two tokens in a row to splice into; give more text.")
        counted = (self.n > 0)[:, None]
        plain, mean = self.ce["plain", None], self.ce["mean", None]
        out = []
        for (name, rank), ce in self.ce.items():
            sums = torch.stack([mean - ce, mean - plain], dim=1)
            found = jackknife(sums, lambda s: (s[0] / s[1])[None], counted)
            value, low, high = (float(end[0]) for end in found)
            # Without enough documents, and of what the scale is made of, there is no interval.
            known = low == low and name not in ("plain", "mean")
            nats = float(ce.sum() / self.n.sum())
            ends = {"low": low, "high": high} if known else {"low": None, "high": None}
            out.append(Spliced(name=name, rank=rank, ce=nats, recovered=value, **ends))
        return tuple(out)


@dataclass(frozen=True)
class _Counted:
    """The positions of a batch whose predictions count, and the group of each."""

    where: Bool[Tensor, "context pos"]
    target: Int[Tensor, " n"]
    group: Int[Tensor, " n"]
    totals: _Totals

    @classmethod
    def of(cls, text: Text, mask: Bool[Tensor, "context pos"], totals: _Totals) -> "_Counted":
        where = F.pad(counted_positions(mask), (0, 1))
        of_context = torch.tensor(totals.group(text.contexts.document.tolist()))
        group = of_context[:, None].expand(where.shape)[where.cpu()]
        totals.n.index_add_(0, group, torch.ones(len(group), dtype=torch.float64))
        return cls(where, text.tokens[:, 1:][where[:, :-1]], group, totals)

    def add(self, condition: Condition, out: ModelOutput) -> None:
        losses = -out.at(self.where).log_probs(self.target).double().cpu()
        total = self.totals.ce.setdefault(condition, torch.zeros_like(self.totals.n))
        total.index_add_(0, self.group, losses)
