"""How well a set's explanations predict, by one judge: as kept in a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saelab.analysis.explain.judging import (
    TESTS,
    VERSION,
    Merit,
    interval,
    score_of,
)
from saelab.analysis.explain.records import (
    MAX_TEXTS_BYTES,
    MAX_VALUES,
    ExplanationSet,
    column,
    damaged,
    fact,
    mapping,
    name_of,
    whole,
)
from saelab.formats.json_file import read_sealed_json, write_sealed_json
from saelab.lock import check_held

FORMAT = "saelab-explanation-scores/1"
OWN = "own"
CONTROLS = ("empty", "random", "tokens")
"""No explanation, that of another latent, and what token statistics say (`Features.fires_on`)."""
WORDS = "words"
"""The judge that is no model (`by_words`)."""


@dataclass
class ExplanationScores:
    """Scores of a set of explanations.

    Attributes:
        judge: the model that judged, or `words`.
        prompt: version of the judge's prompt.
        requests, tokens: what it cost.
        by_source: for `own` and each of CONTROLS, each latent's merit by test.
        n_unread: answers that were neither yes nor no.
        asked: digest of the questions (`digest_of`); empty if unknown.
        examples: texts of each kind for each test of a latent, at most; 0 if unknown.
    """

    judge: str
    prompt: str = VERSION
    sae_sha256: str = ""
    requests: int = 0
    tokens: int = 0
    at: str = ""
    by_source: dict[str, dict[int, Mapping[str, Merit]]] = field(default_factory=dict)
    n_unread: int = 0
    asked: str = ""
    examples: int = 0

    def score(self, latent: int) -> float | None:
        """The mean balanced accuracy of the latent's own explanation; None if it has none."""
        return score_of(self.by_source.get(OWN, {}).get(latent, {}))

    def summary(self) -> dict[str, dict[str, tuple[float, float, float]]]:
        """Mean and 95 % interval over latents: of the score and of each test, by source."""
        found: dict[str, dict[str, tuple[float, float, float]]] = {}
        for source, each in self.by_source.items():
            columns: dict[str, list[float]] = {"score": []}
            for one in each.values():
                if (score := score_of(one)) is not None:
                    columns["score"].append(score)
                for test, merit in one.items():
                    columns.setdefault(test, []).append(merit.balanced)
                    if merit.auc is not None:
                        columns.setdefault(f"{test} AUC", []).append(merit.auc)
            found[source] = {name: interval(v) for name, v in columns.items() if v}
        return found


def scores_path(path: Path, judge: str) -> Path:
    """The file of a judge's scores of the set at `path`."""
    return path / f"scores_{name_of(judge)}.json"


def judged_path(path: Path, judge: str) -> Path:
    """The ledger of a judge's unfinished scores."""
    return path / f"judged_{name_of(judge)}.jsonl"


def write_scores(texts: ExplanationSet, found: ExplanationScores) -> Path:
    """Write the scores beside the set's texts; returns the file."""
    path = scores_path(texts.path, found.judge)
    check_held(texts.path.parents[1])
    write_sealed_json(
        path,
        {
            "format": FORMAT,
            "made": {"sae_sha256": texts.sae_sha256},
            "judge": found.judge,
            "prompt": found.prompt,
            "at": found.at,
            "cost": {"requests": found.requests, "tokens": found.tokens},
            "n_unread": found.n_unread,
            "asked": found.asked,
            "examples": found.examples,
            "sources": {source: _columns(each) for source, each in found.by_source.items()},
        },
    )
    return path


def _columns(each: Mapping[int, Mapping[str, Merit]]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {"latents": list(each)}
    for test in TESTS:
        ones = [one.get(test) for one in each.values()]
        if not any(ones):
            continue
        columns[test] = [m and m.balanced for m in ones]
        columns[f"{test}_auc"] = [m and m.auc for m in ones]
        columns[f"{test}_n"] = [m.n if m else 0 for m in ones]
    return columns


def read_scores(path: Path) -> ExplanationScores:
    """The scores in the file at `path`.

    Raises:
        UsageError: it is missing or damaged.
    """
    values = read_sealed_json(path, most=MAX_TEXTS_BYTES, max_values=4 * MAX_VALUES)
    if values.get("format") != FORMAT:
        raise damaged(path, f"its format is not {FORMAT}")
    cost = mapping(values, "cost", path)
    found = ExplanationScores(
        judge=fact(values, "judge", path),
        prompt=fact(values, "prompt", path),
        sae_sha256=fact(mapping(values, "made", path), "sae_sha256", path),
        requests=whole(cost, "requests", path),
        tokens=whole(cost, "tokens", path),
        at=fact(values, "at", path),
        n_unread=whole(values, "n_unread", path),
        # Scores of earlier versions do not say it.
        asked=fact(values, "asked", path) if "asked" in values else "",
        examples=whole(values, "examples", path) if "examples" in values else 0,
    )
    sources = mapping(values, "sources", path)
    for source in (OWN, *CONTROLS):
        if source in sources:
            found.by_source[source] = _merits(mapping(sources, source, path), path)
    return found


def _merits(columns: Mapping[str, Any], path: Path) -> dict[int, Mapping[str, Merit]]:
    latents = column(columns, "latents", path)
    if any(type(latent) is not int or not 0 <= latent < 2**31 for latent in latents):
        raise damaged(path, "it names what is no latent")
    found: dict[int, dict[str, Merit]] = {latent: {} for latent in latents}
    for test in TESTS:
        if test not in columns:
            continue
        parts = [column(columns, f"{test}{part}", path) for part in ("", "_auc", "_n")]
        if any(len(part) != len(latents) for part in parts):
            raise damaged(path, "its columns have different lengths")
        for latent, balanced, auc, n in zip(latents, *parts, strict=True):
            if balanced is None:
                continue
            if not (_is_share(balanced) and (auc is None or _is_share(auc)) and type(n) is int):
                raise damaged(path, f"a score of {test} is no share")
            found[latent][test] = Merit(float(balanced), None if auc is None else float(auc), n)
    return {latent: one for latent, one in found.items() if one}


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
