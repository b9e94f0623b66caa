"""How well a set's explanations predict, by one judge: the questions, and the answers' scores."""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from saelab.analysis.explain.evidence import evidence_of
from saelab.analysis.explain.judging import (
    JudgeTrial,
    Merit,
    by_words,
    judge_question,
    merits,
    trials_of,
    verdict,
)
from saelab.analysis.explain.output_side import output_trials, raises
from saelab.analysis.explain.records import ExplanationSet, now
from saelab.analysis.explain.scores import OWN, ExplanationScores, read_scores, scores_path
from saelab.analysis.explain.steered import SteeredTexts
from saelab.analysis.records import Features
from saelab.clients.ledger import Ledger
from saelab.clients.question import Question, digest_of
from saelab.config import UsageError
from saelab.console import progress


@dataclass
class Judging:
    """Trials of a set's explanations, and the questions that they make.

    Attributes:
        trials: of each latent.
        explanations: the text of each source, by latent.
        questions: by source, latent and number of the trial.
        examples: texts of each kind for each test of a latent, at most.
    """

    trials: dict[int, list[JudgeTrial]]
    explanations: dict[str, dict[int, str]]
    questions: dict[tuple[str, int, int], Question]
    examples: int

    def scores(self, judge: str, ledger: Ledger | None) -> ExplanationScores:
        """The scores by the ledger's answers; without a ledger, by words."""
        found = ExplanationScores(judge, at=now(), examples=self.examples)
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
    features: Features,
    texts: ExplanationSet,
    latents: Iterable[int],
    n: int,
    n_controls: int,
    steered: SteeredTexts | None = None,
) -> Judging:
    """Trials of the explained ones of `latents`, `n` true and `n` false ones of each test.

    A set of the output side is judged by `steered` texts. The first `n_controls` latents are also
    judged by each control, on the same trials.

    Raises:
        UsageError: none of them is explained, or none can be tried.
    """
    wanted = [latent for latent in latents if latent in texts.by_latent]
    if steered is not None and wanted:
        trials = dict(output_trials(steered, wanted, n))
    else:
        trials = _input_trials(features, wanted, n)
    if not trials:
        raise UsageError(f"{texts.path} explains none of these latents, so none is scored.")
    sources = {OWN: {latent: texts.by_latent[latent].text for latent in trials}}
    some = sorted(trials)[:n_controls]
    if some:
        sources["empty"] = dict.fromkeys(some, "")
        inward = texts.side == "input"
        sources["tokens"] = {
            latent: features.fires_on(latent) if inward else raises(features[latent])
            for latent in some
        }
        sources["random"] = _of_others(sources[OWN], some)
    questions = {
        (source, latent, i): judge_question(f"judge/{source}/{latent}", text, trial, i)
        for source, each in sources.items()
        for latent, text in each.items()
        for i, trial in enumerate(trials[latent])
    }
    return Judging(trials, sources, questions, n)


def _input_trials(
    features: Features, latents: Sequence[int], n: int
) -> dict[int, list[JudgeTrial]]:
    trials = {}
    with progress("Trials", len(latents), "latents") as bar:
        for latent in latents:
            if found := trials_of(features, latent, evidence_of(features[latent]), n):
                trials[latent] = found
            bar.advance(1)
    return trials


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


def scores_there(texts: ExplanationSet, judge: str, judging: Judging) -> ExplanationScores | None:
    """The judge's scores by the same questions; None if there are none."""
    path = scores_path(texts.path, judge)
    found = read_scores(path) if path.exists() else None
    same = found and (found.judge, found.asked) == (judge, digest_of(judging.questions.values()))
    return found if same else None


def check_none_lost(texts: ExplanationSet, judge: str, judging: Judging) -> None:
    """Refuse to replace a judge's scores, which may have been paid for, by fewer or other ones.

    Raises:
        UsageError: the set has scores by this judge of latents, or by controls, that are not judged
            now, or on another number of examples.
    """
    path = scores_path(texts.path, judge)
    if not path.exists():
        return
    there = read_scores(path)
    if there.examples not in (0, judging.examples):
        raise UsageError(
            f"{path} has scores with --examples {there.examples}, which those with --examples "
            f"{judging.examples} would replace; give --examples {there.examples}, or move the file "
            "away."
        )
    for source, scored in there.by_source.items():
        if lost := scored.keys() - judging.explanations.get(source, {}).keys():
            what = "" if source == OWN else f" by the control `{source}`"
            remedy = "choose them too" if source == OWN else "raise --controls"
            raise UsageError(
                f"{path} has scores{what} of {len(lost)} latents that are not chosen now, e.g. "
                f"{min(lost)}, which would be lost; {remedy}, or move the file away."
            )
