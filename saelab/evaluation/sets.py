"""A set of runs on held-out text: each run alone, and the model with all of them at once."""

from collections.abc import Sequence
from pathlib import Path

import torch

from saelab.activations.corpus import Corpus
from saelab.config import UsageError
from saelab.evaluation.at_once import at_once
from saelab.evaluation.evaluate import evaluate
from saelab.evaluation.options import EvaluateOptions
from saelab.evaluation.other_text import saved_as
from saelab.evaluation.plan import AT_REST, sized
from saelab.evaluation.results import Evaluation, load_evaluation, place
from saelab.evaluation.set_results import EVALUATION, MemberFigures, SetEvaluation
from saelab.formats.json_file import write_sealed_json
from saelab.host.host import Host
from saelab.host.text import corpus_of
from saelab.lm.cost import forward_bytes, logits_bytes
from saelab.lm.protocol import LanguageModel
from saelab.lock import writing
from saelab.provenance import provenance
from saelab.resources import Plan
from saelab.training.run import Run
from saelab.training.sets import Member, RunSet

ALL = "all"


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
    check_options(options)
    members = runs.runs
    text = _common_text(members, lm) if corpus is None else corpus
    widest = max(run.config.sae.d_sae for run in members)
    options = sized(options, lm, text, widest)
    with writing(runs.path) as lock:
        alone = [_alone(run, lm, options, corpus) for run in members]
        weights = sum(run.weights.stat().st_size for run in members)
        _plan(lm, text, options, weights).announce()
        hosts = [Host.of_run(run, lm) for run in members]
        n_tokens, plain, found = at_once(_kinds(runs, hosts), text, options)
        figures = tuple(
            _figures(member, one) for member, one in zip(runs.manifest.members, alone, strict=True)
        )
        manifest = runs.manifest
        facts = manifest.recipe, manifest.model.name
        result = SetEvaluation(*facts, n_tokens, plain, figures, found)
        made = {
            "options": options.model_dump(mode="json"),
            "corpus": dict(text.facts),
            "sae_sha256": {run.name: run.weights_sha256 for run in members},
            "provenance": provenance(device=str(lm.device)),
        }
        lock.check()
        write_sealed_json(set_file(runs, corpus), {"made": made, **result.values()})
    return result


def check_options(options: EvaluateOptions) -> None:
    """Refuse options that are for a single run.

    Raises:
        UsageError: the message names the option.
    """
    if options.encoder is not None:
        raise UsageError(f"--encoder {options.encoder} is for one SAE; name a run of the set.")


def _kinds(runs: RunSet, hosts: Sequence[Host]) -> dict[str, list[Host]]:
    """All of them; and those of each part, if there are several parts."""
    parts = [member.part for member in runs.manifest.members]
    kinds = sorted(set(parts)) if len(set(parts)) > 1 else []
    of_parts = {
        kind: [host for host, part in zip(hosts, parts, strict=True) if part == kind]
        for kind in kinds
    }
    return {ALL: list(hosts), **of_parts}


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
        if same and made.get("sae_sha256") == run.weights_sha256:
            return load_evaluation(run, text=where)
    return evaluate(run, lm, options, corpus=corpus)


def _figures(member: Member, found: Evaluation) -> MemberFigures:
    made, cost = found.reconstruction, found.downstream
    added = cost["ce_spliced"] - cost["ce_plain"] if cost else None
    return MemberFigures(
        member.name, member.layer, member.part, int(made["d_sae"]), made["l0"], made["fvu"],
        int(made["dead"]), added, cost.get("ce_recovered"), member.n_layers,
    )  # fmt: skip


def _plan(lm: LanguageModel, text: Corpus, options: EvaluateOptions, weights: int) -> Plan:
    memory = weights + forward_bytes(lm, options.contexts, text.context_length) + logits_bytes(lm)
    return Plan("the set at once", lm.device, memory + AT_REST, "lower --batch-size")
