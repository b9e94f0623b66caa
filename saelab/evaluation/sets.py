"""A set of runs on held-out text: each run alone, and the model with all of them at once."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from saelab.activations.corpus import Corpus
from saelab.config import UsageError
from saelab.console import progress
from saelab.evaluation.document_losses import DocumentLosses
from saelab.evaluation.evaluate import evaluate
from saelab.evaluation.measurement import Column, checked
from saelab.evaluation.options import EvaluateOptions
from saelab.evaluation.other_text import saved_as
from saelab.evaluation.plan import AT_REST, sized
from saelab.evaluation.report import Section
from saelab.evaluation.results import Evaluation, load_evaluation, place
from saelab.files import sha256_file
from saelab.formats.json_file import read_sealed_json, write_sealed_json
from saelab.host.host import Host
from saelab.host.splice import reconstruction, splice_edits
from saelab.host.text import Text, corpus_of, read_text
from saelab.lm.cost import forward_bytes, logits_bytes
from saelab.lm.predictions import Predictions, exact
from saelab.lm.protocol import LanguageModel
from saelab.lock import writing
from saelab.provenance import provenance
from saelab.resources import Plan
from saelab.training.domain import EVERYWHERE
from saelab.training.run import Run
from saelab.training.sets import RunSet

ALL = "all"
EVALUATION = "evaluation"
PLAIN = ("plain", "")
"""The model as it is, among the conditions of a text."""


@dataclass(frozen=True)
class MemberFigures:
    """A run of a set, measured alone.

    Attributes:
        ce_added: cross-entropy that it costs, in nats per token; None if it was not measured.
        ce_recovered: (CE_zero - CE) / (CE_zero - CE_plain), likewise.
    """

    name: str
    layer: int
    part: str
    d_sae: int
    l0: float
    fvu: float
    dead: int
    ce_added: float | None
    ce_recovered: float | None


@dataclass(frozen=True)
class AtOnce:
    """The model with all runs of a kind at once in place of what they reconstruct.

    Each run reads what the changed model computes. Where a run is not applied (see `Domain`), the
    model's own value stays.

    Attributes:
        what: all, or the part of each block: attention, mlp.
        n_runs: how many runs these are.
        ce, ce_mean, ce_zero: cross-entropy with reconstructions, with each site's mean, with zeros,
            in nats per token.
        recovered: (CE_mean - CE) / (CE_mean - CE_plain), which has a 95 % interval over documents.
        low, high: its ends; None if the text has too few documents.
        recovered_zero: the same against zeros.
        kl: KL(plain || changed) in nats per token.
        top1_agreement: share of positions where both predict the same token first.
        left_alone: share of the rows at which a run is not applied.
    """

    what: str
    n_runs: int
    ce: float
    ce_mean: float
    ce_zero: float
    recovered: float
    low: float | None
    high: float | None
    recovered_zero: float
    kl: float
    top1_agreement: float
    left_alone: float


@dataclass(frozen=True)
class SetEvaluation:
    """What was measured of a set.

    Attributes:
        members: the runs alone, in order of depth.
        ce_plain: the model's cross-entropy in nats per token.
        n_tokens: positions whose predictions count.
        at_once: all runs at once; then each part's, if there are several parts.
    """

    recipe: str
    model: str
    n_tokens: int
    ce_plain: float
    members: tuple[MemberFigures, ...]
    at_once: tuple[AtOnce, ...]

    def values(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return asdict(self)


@torch.no_grad()
def evaluate_set(
    runs: RunSet,
    lm: LanguageModel,
    options: EvaluateOptions | None = None,
    *,
    corpus: Corpus | None = None,
) -> SetEvaluation:
    """Measure each run of a set as `evaluate` does, then all at once; save evaluation.json in it.

    A run whose saved evaluation was made with the same options and weights on the same text keeps
    it, so an interrupted evaluation continues. `corpus` is another text than the held-out one (see
    `other_text`); the file is then evaluation-NAME.json.

    Raises:
        UsageError: a run is missing, or `lm` is not the model, or the runs have no text in common.
    """
    options = options or EvaluateOptions()
    if options.encoder is not None:
        raise UsageError(f"--encoder {options.encoder} is for one SAE; name a run of the set.")
    members = runs.runs
    text = _common_text(members, lm) if corpus is None else corpus
    options = sized(options, lm, text)
    with writing(runs.path):
        alone = [_alone(run, lm, options, corpus) for run in members]
        weights = sum(run.weights.stat().st_size for run in members)
        _plan(lm, text, options, weights).announce()
        hosts = [Host.of_run(run, lm) for run in members]
        measured = _at_once(runs, hosts, text, options)
        figures = tuple(
            _figures(member.name, member.layer, member.part, found)
            for member, found in zip(runs.manifest.members, alone, strict=True)
        )
        manifest = runs.manifest
        result = SetEvaluation(manifest.recipe, manifest.model.name, *measured[:2], figures,
                               measured[2])  # fmt: skip
        made = {
            "options": options.model_dump(mode="json"),
            "corpus": dict(text.facts),
            "sae_sha256": {run.name: sha256_file(run.weights) for run in members},
            "provenance": provenance(device=str(lm.device)),
        }
        write_sealed_json(set_file(runs, corpus), {"made": made, **result.values()})
    return result


def load_set_evaluation(path: Path) -> SetEvaluation | None:
    """What was measured of the set at `path` on its own held-out text; None if nothing was.

    Raises:
        UsageError: the file is damaged.
    """
    file = path / f"{EVALUATION}.json"
    return read_set_evaluation(file) if file.is_file() else None


def read_set_evaluation(file: Path) -> SetEvaluation:
    """What was measured of a set, as its file says.

    Raises:
        UsageError: the file is damaged.
    """
    values = {name: value for name, value in read_sealed_json(file).items() if name != "made"}
    return checked(SetEvaluation, values, str(file))


def set_file(runs: RunSet, corpus: Corpus | None) -> Path:
    """Where what is measured of a set on another text, or on its own, is kept."""
    text = None if corpus is None else saved_as(runs.runs[0], corpus)
    return runs.path / f"{'-'.join(filter(None, (EVALUATION, text)))}.json"


def _common_text(members: tuple[Run, ...], lm: LanguageModel) -> Corpus:
    """The held-out text of all runs."""
    first = members[0]
    for run in members:
        if run.provenance()["corpus"] != first.provenance()["corpus"]:
            raise UsageError(
                f"{run.path} was trained on another text than {first.path}, so what both held out "
                "is not known; name a text with --text."
            )
    return corpus_of(first, lm, "held-out")


def _alone(
    run: Run, lm: LanguageModel, options: EvaluateOptions, corpus: Corpus | None
) -> Evaluation:
    """The evaluation of one run; a saved one if it is the same."""
    where = place(run, corpus, options)
    made = (run.evaluation("summary", text=where) or {}).get("made")
    if isinstance(made, dict):
        same = made.get("options") == options.model_dump(mode="json")
        if same and made.get("sae_sha256") == sha256_file(run.weights):
            return load_evaluation(run, text=where)
    return evaluate(run, lm, options, corpus=corpus)


def _figures(name: str, layer: int, part: str, found: Evaluation) -> MemberFigures:
    made, cost = found.reconstruction, found.downstream
    added = cost["ce_spliced"] - cost["ce_plain"] if cost else None
    return MemberFigures(
        name, layer, part, int(made["d_sae"]), made["l0"], made["fvu"], int(made["dead"]),
        added, cost.get("ce_recovered"),
    )  # fmt: skip


def _plan(lm: LanguageModel, text: Corpus, options: EvaluateOptions, weights: int) -> Plan:
    memory = weights + forward_bytes(lm, options.contexts, text.context_length) + logits_bytes(lm)
    return Plan("the set at once", lm.device, memory + AT_REST, "lower --batch-size")


Condition = tuple[str, str]
"""A kind of runs, and what is put in their places."""
REPLACED, MEAN, ZERO = "reconstruction", "mean", "zero"


def _at_once(
    runs: RunSet, hosts: list[Host], corpus: Corpus, options: EvaluateOptions
) -> tuple[int, float, tuple[AtOnce, ...]]:
    """Positions counted, the plain cross-entropy, and the figures of each kind of runs."""
    parts = {member.name: member.part for member in runs.manifest.members}
    kinds = sorted(set(parts.values()))
    chosen = {ALL: hosts}
    if len(kinds) > 1:
        chosen |= {kind: [h for h in hosts if parts[h.name] == kind] for kind in kinds}
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

    def add(self, text: Text, chosen: dict[str, list[Host]]) -> None:
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

    def _counter(self, what: str, mask: Bool[Tensor, "context pos"]) -> Any:  # noqa: ANN401
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


def set_sections(found: SetEvaluation) -> list[Section]:
    """The tables of a set: its runs by layer, and the model with all of them at once."""
    columns = tuple(
        Column(name, number=name not in ("part", "run"))
        for name in (
            "layer",
            "part",
            "run",
            "latents",
            "L0",
            "FVU",
            "dead",
            "costs",
            "CE recovered",
        )
    )
    rows = [
        (str(m.layer), m.part, m.name, str(m.d_sae), f"{m.l0:.1f}", f"{m.fvu:.4f}", str(m.dead),
         "-" if m.ce_added is None else f"{m.ce_added:+.4f}",
         "-" if m.ce_recovered is None else f"{m.ce_recovered:.1%}")
        for m in found.members
    ]  # fmt: skip
    about = "Costs: cross-entropy that it adds, nats per token; CE recovered: 0 % is zeros there."
    alone = Section("By layer, each alone", columns, rows, about, [])
    return [alone, _together(found)]


def _together(found: SetEvaluation) -> Section:
    named = ("replaced", "runs", "CE", "CE recovered", "95 %", "zeros",
             "KL", "top-1", "left alone")  # fmt: skip
    rows = [
        (one.what, str(one.n_runs), f"{one.ce:.4f}", f"{one.recovered:.1%}",
         "-" if one.low is None or one.high is None else f"{one.low:.1%} to {one.high:.1%}",
         f"{one.recovered_zero:.1%}", f"{one.kl:.4f}", f"{one.top1_agreement:.1%}",
         f"{one.left_alone:.1%}")
        for one in found.at_once
    ]  # fmt: skip
    about = (
        f"The model alone has CE {found.ce_plain:.4f} on {found.n_tokens} tokens; each run reads "
        "what the changed model computes. CE recovered: 100 % is the model alone, 0 % the mean of "
        "every site; zeros: 0 % is zeros there. Top-1: how often both predict the same token. Left "
        "alone: rows like those that training left out, which pass unchanged."
    )
    columns = tuple(Column(name, number=name != "replaced") for name in named)
    return Section("All at once", columns, rows, about, [])
