"""The model with many SAEs at once in place of what they reconstruct."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from saelab.activations.corpus import Corpus
from saelab.console import progress
from saelab.evaluation.document_losses import DocumentLosses
from saelab.evaluation.options import EvaluateOptions
from saelab.evaluation.set_results import AtOnce
from saelab.host.host import Host
from saelab.host.splice import Applied, reconstruction, splice_edits
from saelab.host.text import Text, read_text
from saelab.lm.predictions import Predictions, exact
from saelab.training.domain import EVERYWHERE

Condition = tuple[str, str]
"""A kind of SAEs, and what is put in their places."""
PLAIN = ("plain", "")
REPLACED, MEAN, ZERO = "reconstruction", "mean", "zero"


@torch.no_grad()
def at_once(
    chosen: Mapping[str, list[Host]], corpus: Corpus, options: EvaluateOptions
) -> tuple[int, float, tuple[AtOnce, ...]]:
    """Positions counted, the plain cross-entropy, and the figures of each kind of SAEs.

    Raises:
        UsageError: the text has no two tokens in a row.
    """
    hosts = list({host.name: host for of in chosen.values() for host in of}.values())
    sums = _Sums(hosts, _means(hosts, corpus, options))
    with progress("Replace at once", options.n_tokens, "tokens") as bar:
        for text in _texts(hosts, corpus, options):
            sums.add(text, chosen)
            bar.advance(int(text.mask.sum()))
    sums.losses.check("replace all in")
    found = tuple(sums.results(what, len(of)) for what, of in chosen.items())
    return sums.losses.n_tokens, sums.losses.mean(PLAIN), found


def _texts(hosts: list[Host], corpus: Corpus, options: EvaluateOptions) -> Iterator[Text]:
    """The text with every real token: where the SAEs are applied, each says itself."""
    everywhere = replace(hosts[0], domain=EVERYWHERE)
    return read_text(everywhere, corpus, n_tokens=options.n_tokens, batch_size=options.contexts)


def _means(
    hosts: list[Host], corpus: Corpus, options: EvaluateOptions
) -> dict[str, Float[Tensor, " d_out"]]:
    """The mean of what each SAE reconstructs, where it is applied, in the plain model."""
    lm = hosts[0].lm
    sites = list(dict.fromkeys(site for host in hosts for site in host.sites))
    totals, n = dict[str, Tensor](), dict.fromkeys((host.name for host in hosts), 0)
    with progress("Means", options.n_tokens, "tokens") as bar:
        for text in _texts(hosts, corpus, options):
            seen = lm.capture(text.tokens, sites)
            for host in hosts:
                target = seen[host.writes]
                applies = text.mask & host.domain.covers(
                    text.tokens, seen[host.reads], target=target
                )
                total = target[applies].double().sum(0)
                totals[host.name] = totals.get(host.name, 0) + total
                n[host.name] += int(applies.sum())
            bar.advance(int(text.mask.sum()))
    return {name: (total / max(1, n[name])).float() for name, total in totals.items()}


class _Sums:
    """Losses of each kind of runs with reconstructions, means and zeros, over batches of text."""

    def __init__(self, hosts: list[Host], means: dict[str, Float[Tensor, " d_out"]]) -> None:
        self.lm, self.means = hosts[0].lm, means
        self.losses: DocumentLosses[Condition] = DocumentLosses()
        self.kl: dict[str, float] = {}
        self.agree: dict[str, int] = {}
        self.rows: dict[str, tuple[int, int]] = {}

    def add(self, text: Text, chosen: Mapping[str, list[Host]]) -> None:
        """Add a batch of contexts."""
        count = self.losses.batch(text, text.mask)
        plain = count.add(PLAIN, self.lm.run(text.tokens))
        fillings = {
            REPLACED: reconstruction,
            MEAN: lambda host, x: self.means[host.name].expand(len(x), -1),
            ZERO: lambda host, x: x.new_zeros(len(x), host.sae.d_out),
        }
        for what, hosts in chosen.items():
            for how, rows in fillings.items():
                places = self._counter(what, text.mask) if how == REPLACED else None
                edits = splice_edits(hosts, text.tokens, rows, places)
                changed = count.add((what, how), self.lm.run(text.tokens, edits=edits))
                if how == REPLACED:
                    self._compare(what, plain, changed)

    def _counter(self, what: str, mask: Bool[Tensor, "context pos"]) -> Applied:
        def seen(_: Host, applies: Bool[Tensor, "context pos"]) -> None:
            all_rows, left = self.rows.get(what, (0, 0))
            n, applied = int(mask.sum()), int((mask & applies).sum())
            self.rows[what] = all_rows + n, left + n - applied

        return seen

    def _compare(self, what: str, plain: Predictions, changed: Predictions) -> None:
        for part in plain.pieces():
            p, q = (exact(one.logits(part)).log_softmax(-1) for one in (plain, changed))
            kl = float(F.kl_div(q, p, reduction="sum", log_target=True))
            self.kl[what] = self.kl.get(what, 0.0) + kl
            same = int((p.argmax(-1) == q.argmax(-1)).sum())
            self.agree[what] = self.agree.get(what, 0) + same

    def results(self, what: str, n_runs: int) -> AtOnce:
        """The figures of a kind of runs."""
        losses, n = self.losses, self.losses.n_tokens
        ce, ce_mean, ce_zero = (losses.mean((what, how)) for how in (REPLACED, MEAN, ZERO))
        found = losses.recovered((what, REPLACED), best=PLAIN, worst=(what, MEAN))
        zero = losses.recovered((what, REPLACED), best=PLAIN, worst=(what, ZERO))
        all_rows, left = self.rows[what]
        return AtOnce(
            what, n_runs, ce, ce_mean, ce_zero, *found, zero.value, self.kl[what] / n,
            self.agree[what] / n, left / all_rows,
        )  # fmt: skip
