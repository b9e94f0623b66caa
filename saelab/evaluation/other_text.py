"""A text of one's choice to measure a run on, and where what was found is kept."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from saelab.activations.corpus import Corpus, load_corpus
from saelab.activations.documents import ROWS, TEXT_FIELD
from saelab.activations.format import UNTIL
from saelab.activations.text_files import kind_of
from saelab.config import UsageError
from saelab.formats.json_file import canonical_digest
from saelab.host.host import check_model
from saelab.host.text import corpus_of
from saelab.lm.protocol import LanguageModel
from saelab.training.run import Run


@dataclass(frozen=True)
class TextOptions:
    """How a text is read; the fields are those of `load_corpus`."""

    text_field: str = TEXT_FIELD
    labels: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()


LONGEST = 40
"""Characters of a text's name that become a directory's."""


def other_text(
    run: Run,
    lm: LanguageModel,
    source: str,
    *,
    options: TextOptions | None = None,
    n_tokens: int | None = None,
) -> Corpus:
    """The corpus that `source` names, in contexts of the length that the run was trained on.

    All of it counts as held out, unless it is the text that the run was trained on: of that, the
    contexts that no SAE is trained on. Only whole texts are told apart; what another text has in
    common with the training's is not looked for. `n_tokens` is how many will be read, which a
    stream that does not end must know.

    Raises:
        UsageError: as `load_corpus`, or `lm` is not the model the run was trained on.
    """
    check_model(lm, run)
    options = options or TextOptions()
    trained: Mapping[str, JsonValue] = run.provenance()["corpus"] or {}
    length = run.context_length
    if _same_source(source, trained):
        if options == TextOptions():
            return corpus_of(run, lm, "held-out")
        _check_order(run, source, trained)
    seed = trained.get("seed")
    corpus = load_corpus(
        source,
        lm,
        split="held-out" if source == "tiny" or _same_source(source, trained) else "all",
        context_length=length,
        seed=seed if isinstance(seed, int) else 0,
        max_tokens=n_tokens if source.startswith("hf:") else None,
        text_field=options.text_field,
        labels=options.labels,
        roles=options.roles,
    )
    digest, here = trained.get("text_xxh3"), corpus.facts.get("text_xxh3")
    if _same_source(source, trained) and here != digest:
        raise UsageError(
            f"{source} has changed since {run.path} was trained on it, so what was held out is no "
            "longer known; give the text another name to measure on all of it."
        )
    if not _same_source(source, trained) and digest is not None and here == digest:
        raise UsageError(
            f"{source} is the text that {run.path} was trained on; name it as it was then, "
            f"{trained['source']}, to measure on what was held out."
        )
    return corpus


def _check_order(run: Run, source: str, trained: Mapping[str, JsonValue]) -> None:
    """Refuse to read the training's text in a way that would hold out something else."""
    if source == "tiny":
        raise UsageError("The text 'tiny' has labels of its own and no roles; name it alone.")
    rows = Path(source).is_file() and kind_of(Path(source)) in ROWS
    if trained.get("order") != "mixed" or not (rows or "annotator" in trained):
        raise UsageError(
            f"{run.path} was trained on {source} without labels or roles, and read with them it is "
            "cut into other contexts, of which others are held out; harvest with them, or give a "
            "text that was not trained on."
        )


def saved_as(run: Run, corpus: Corpus) -> str | None:
    """The name under which figures of this corpus are saved; None: it is the run's own.

    A text's own figures are those of the contexts that were held out, with the labels and roles
    that were harvested.
    """
    facts, trained = dict(corpus.facts), run.provenance()["corpus"] or {}
    # How much of it was harvested does not matter.
    own = {name: value for name, value in trained.items() if name not in (UNTIL, "max_tokens")}
    if {name: facts.get(name) for name in own} == {**own, "split": "held-out"}:
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
