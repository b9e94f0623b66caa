"""Another text to measure a run on, and where the results are kept."""

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
    """Options for reading a text; the fields are those of `load_corpus`."""

    text_field: str = TEXT_FIELD
    labels: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()


LONGEST = 40
"""Most characters of a text's name that a directory's name uses."""


def other_text(
    run: Run,
    lm: LanguageModel,
    source: str,
    *,
    options: TextOptions | None = None,
    n_tokens: int | None = None,
) -> Corpus:
    """The corpus that `source` names, in contexts of the run's length.

    All of it counts as held out, unless it is the run's own training text: then only the contexts
    that no SAE is trained on. Only whole texts are compared; shared parts of two texts are not
    detected. `n_tokens` is the number of tokens that will be read, needed for endless streams.

    Raises:
        UsageError: as `load_corpus`, or `lm` is not the run's model.
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
    """Refuse to read the training text in an order that would hold out other contexts."""
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
    """The name under which results on this corpus are saved; None for the run's own text.

    The run's own text means its held-out contexts, with the harvested labels and roles.
    """
    facts, trained = dict(corpus.facts), run.provenance()["corpus"] or {}
    # The number of harvested contexts does not matter.
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
