"""How well a set's explanations predict, by one judge: measured, kept and read."""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saelab.analysis.explain.evidence import evidence_of
from saelab.analysis.explain.judging import (
    TESTS,
    VERSION,
    JudgeTrial,
    Merit,
    by_words,
    interval,
    judge_question,
    merits,
    score_of,
    trials_of,
    verdict,
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
    now,
    whole,
)
from saelab.analysis.records import Features
from saelab.clients.ledger import Ledger
from saelab.clients.question import Question, digest_of
from saelab.config import UsageError
from saelab.console import progress
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


@dataclass
class Judging:
    """Trials of a set's explanations, and the questions that they make.

    Attributes:
        trials: of each latent.
        explanations: the text of each source, by latent.
        questions: by source, latent and number of the trial.
    """

    trials: dict[int, list[JudgeTrial]]
    explanations: dict[str, dict[int, str]]
    questions: dict[tuple[str, int, int], Question]

    def scores(self, judge: str, ledger: Ledger | None) -> ExplanationScores:
        """The scores by the ledger's answers; without a ledger, by words."""
        found = ExplanationScores(judge, at=now())
        for source, texts in self.explanations.items():
            each: dict[int, Mapping[str, Merit]] = {}
            for latent, text in texts.items():
                chance = [
                    by_words(text, trial)
                    if ledger is None
                    else self._chance((source, latent, i), ledger, found)
                    for i, trial in enumerate(self.trials[latent])
                ]
                if one := merits(self.trials[latent], chance):
                    each[latent] = one
            found.by_source[source] = each
        if ledger is not None:
            found.requests, found.tokens = ledger.requests, ledger.tokens
            found.asked = digest_of(self.questions.values())
        return found

    def _chance(
        self, key: tuple[str, int, int], ledger: Ledger, found: ExplanationScores
    ) -> float | None:
        answer = ledger.answers.get(self.questions[key].key)
        chance = None if answer is None else verdict(answer)
        found.n_unread += answer is not None and chance is None
        return chance


def begin_judging(
    features: Features, texts: ExplanationSet, latents: Iterable[int], n: int, n_controls: int
) -> Judging:
    """Trials of the explained ones of `latents`, `n` true and `n` false ones of each test.

    The first `n_controls` latents are also judged by each control, on the same trials.

    Raises:
        UsageError: none of them is explained, or none can be tried.
    """
    trials: dict[int, list[JudgeTrial]] = {}
    wanted = [latent for latent in latents if latent in texts.by_latent]
    with progress("Trials", len(wanted), "latents") as bar:
        for latent in wanted:
            if found := trials_of(features, latent, evidence_of(features[latent]), n):
                trials[latent] = found
            bar.advance(1)
    if not trials:
        raise UsageError(f"{texts.path} explains none of these latents, so none is scored.")
    sources = {OWN: {latent: texts.by_latent[latent].text for latent in trials}}
    some = sorted(trials)[:n_controls]
    if some:
        sources["empty"] = dict.fromkeys(some, "")
        sources["tokens"] = {latent: features.fires_on(latent) for latent in some}
        sources["random"] = _of_others(sources[OWN], some)
    questions = {
        (source, latent, i): judge_question(f"judge/{source}/{latent}", text, trial, i)
        for source, each in sources.items()
        for latent, text in each.items()
        for i, trial in enumerate(trials[latent])
    }
    return Judging(trials, sources, questions)


def _of_others(texts: Mapping[int, str], latents: list[int]) -> dict[int, str]:
    """For each latent the explanation of another one, of another text where there is one."""
    draw = random.Random(0)
    every = sorted(set(texts.values()))
    found = {}
    for latent in latents:
        others = [text for text in every if text != texts[latent]]
        if others:
            found[latent] = draw.choice(others)
    return found


def scores_path(path: Path, judge: str) -> Path:
    """The file of a judge's scores of the set at `path`."""
    return path / f"scores_{name_of(judge)}.json"


def judged_path(path: Path, judge: str) -> Path:
    """The ledger of a judge's unfinished scores."""
    return path / f"judged_{name_of(judge)}.jsonl"


def scores_there(texts: ExplanationSet, judge: str, judging: Judging) -> ExplanationScores | None:
    """The judge's scores by the same questions; None if there are none."""
    path = scores_path(texts.path, judge)
    found = read_scores(path) if path.exists() else None
    same = found and (found.judge, found.asked) == (judge, digest_of(judging.questions.values()))
    return found if same else None


def check_none_lost(texts: ExplanationSet, judge: str, judging: Judging) -> None:
    """Refuse to replace a judge's scores, which may have been paid for, by those of fewer latents.

    Raises:
        UsageError: the set has scores by this judge of latents that are not judged now.
    """
    path = scores_path(texts.path, judge)
    if not path.exists():
        return
    if lost := read_scores(path).by_source.get(OWN, {}).keys() - judging.trials.keys():
        raise UsageError(
            f"{path} has scores of {len(lost)} latents that are not chosen now, e.g. {min(lost)}, "
            "which would be lost; choose them too, or move the file away."
        )


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
            "sources": {source: _columns(each) for source, each in found.by_source.items()},
        },
    )
    return path


def _columns(each: Mapping[int, Mapping[str, Merit]]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {"latents": list(each)}
    for test in TESTS:
        ones = [one.get(test) for one in each.values()]
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
