"""Whether the model runs on transported activations, and on latents read from them.

At the later site of the live model every row is replaced: by the transported row, or by the SAE's
reconstruction of it. CE recovered is 1 for the plain model and 0 for the mean at every token:
(CE_mean - CE) / (CE_mean - CE_plain), on text that no harvest uses.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.activations.corpus import Corpus
from saelab.analysis.transport.moments import Pair
from saelab.analysis.transport.ranked import RankedMaps
from saelab.analysis.transport.records import Spliced, SpliceName
from saelab.console import progress
from saelab.evaluation.document_losses import DocumentLosses
from saelab.host.host import Host
from saelab.host.text import read_text
from saelab.lm.edits import replace_rows
from saelab.sae.base import AbstractSAE
from saelab.sae.decoder import dtype_of
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
    lm, host = splicer.host.lm, splicer.host
    losses: DocumentLosses[Condition] = DocumentLosses()
    with progress("Splice", n_tokens, "tokens") as bar:
        for text in read_text(host, corpus, n_tokens=n_tokens, batch_size=batch_size):
            out = lm.run(text.tokens, hooks=list(dict.fromkeys(splicer.pair)))
            seen = out.activations
            mask = text.mask & splicer.kept(seen).to(text.mask.device)
            if not bool(mask.any()):
                continue
            x, y = (seen[site][mask].float() for site in splicer.pair)
            count = losses.batch(text, mask)
            count.add(("plain", None), out)
            for condition, rows in splicer.rows(x, y):
                edit = {splicer.pair[1]: replace_rows(mask, rows)}
                count.add(condition, lm.run(text.tokens, edits=edit))
            bar.advance(int(mask.sum()))
    return _results(losses)


def _reconstruction(sae: AbstractSAE, rows: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
    rows = rows.to(dtype_of(sae))
    return sae.decode(sae.encode(rows), rows)


def _results(losses: DocumentLosses[Condition]) -> tuple[Spliced, ...]:
    losses.check("splice into")
    out = []
    for condition in losses.ce:
        found = losses.recovered(condition, best=("plain", None), worst=("mean", None))
        ends = {"low": found.low, "high": found.high}
        name, rank = condition
        ce = losses.mean(condition)
        out.append(Spliced(name=name, rank=rank, ce=ce, recovered=found.value, **ends))
    return tuple(out)
