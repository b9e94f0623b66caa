"""A text of one's choice to measure a run on, and where what was found is kept."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import JsonValue

from saelab.activations.corpus import Corpus, load_corpus
from saelab.activations.format import canonical_digest
from saelab.config import UsageError
from saelab.evaluation.stream import check_model
from saelab.lm.protocol import LanguageModel
from saelab.training.run import Run

LONGEST = 40
"""Characters of a text's name that become a directory's."""


def other_text(
    run: Run,
    lm: LanguageModel,
    source: str,
    *,
    labels: Sequence[str] = (),
    roles: Sequence[str] = (),
    n_tokens: int | None = None,
) -> Corpus:
    """The corpus that `source` names, in contexts of the length that the run was trained on.

    All of it counts as held out, unless it is the text that the run was trained on: of that, the
    contexts that no SAE is trained on. Only whole texts are told apart; what another text has in
    common with the training's is not looked for.

    `source`, `labels` and `roles` are those of `load_corpus`; `n_tokens` is how many will be read,
    which a stream that does not end must know.

    Raises:
        UsageError: as `load_corpus`, or `lm` is not the model the run was trained on.
    """
    check_model(lm, run)
    record = run.provenance()
    trained: Mapping[str, JsonValue] = record["corpus"] or {}
    again = _same_source(source, trained)
    if again and not labels and not roles:
        labels, roles = (_texts(trained.get(name)) for name in ("labels", "roles"))
    limit = trained.get("max_tokens") if again else n_tokens if source.startswith("hf:") else None
    corpus = load_corpus(
        source,
        lm,
        split="held-out" if again or source == "tiny" else "all",
        context_length=record["context_length"],
        seed=_integer(trained.get("seed")) or 0,
        max_tokens=_integer(limit),
        labels=labels,
        roles=roles,
    )
    digest = trained.get("tokens_sha256")
    if not again and digest is not None and corpus.facts.get("tokens_sha256") == digest:
        raise UsageError(
            f"{source} is the text that {run.path} was trained on, under another name than "
            f"{trained['source']}; evaluate without --text."
        )
    if again and corpus.facts.get("tokens_sha256") != digest:
        raise UsageError(
            f"{source} has changed since {run.path} was trained on it, so what was held out is no "
            "longer known; give the text another name to measure on all of it."
        )
    return corpus


def saved_as(run: Run, corpus: Corpus) -> str | None:
    """The name under which figures of this corpus are saved; None: it is the run's own.

    A text's own figures are those of the contexts that were held out, with the labels and roles
    that were harvested.
    """
    facts = dict(corpus.facts)
    if facts == {**(run.provenance()["corpus"] or {}), "split": "held-out"}:
        return None
    stem = Path(str(facts.get("source", "text"))).stem or "text"
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-")[:LONGEST] or "text"
    return f"{plain}-{canonical_digest(facts)[:8]}"


def _same_source(source: str, trained: Mapping[str, JsonValue]) -> bool:
    before = trained.get("source")
    if not isinstance(before, str):
        return False
    if source == before:
        return True
    return Path(source).exists() and Path(source).resolve() == Path(before).resolve()


def _texts(value: JsonValue) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()


def _integer(value: JsonValue) -> int | None:
    return value if isinstance(value, int) else None
