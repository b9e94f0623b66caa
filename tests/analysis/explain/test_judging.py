"""What a judge is tried with, and what its verdicts are worth."""

import random

import numpy as np
import pytest
import torch

from saelab.analysis.explain.evidence import evidence_of
from saelab.analysis.explain.judging import (
    JudgeTrial,
    Merit,
    by_words,
    interval,
    judge_question,
    merit,
    merits,
    score_of,
    trials_of,
    verdict,
)
from saelab.analysis.records import Features
from saelab.clients.question import Answer
from saelab.evaluation.probe import auroc


@pytest.fixture(scope="module")
def features(told_run):
    return Features(told_run.path)


def test_the_trials_are_of_texts_that_the_explainer_did_not_see(features):
    for latent in range(9, 13):
        evidence = evidence_of(features[latent])
        trials = trials_of(features, latent, evidence, 4)
        assert trials == trials_of(features, latent, evidence, 4)
        for test in ("detection", "fuzzing"):
            assert sum(t.truth for t in trials if t.test == test) == 4
            assert 2 <= sum(not t.truth for t in trials if t.test == test) <= 4
        for trial in trials:
            assert ("<<" in trial.text) == (trial.test == "fuzzing")


def test_marked_tokens_are_the_latents_own_only_where_the_trial_is_true(features):
    # Latent 9 fires on token 9 alone.
    trials = trials_of(features, 9, evidence_of(features[9]), 5)
    word = features.file.token(9)
    for trial in trials:
        if trial.test == "fuzzing":
            assert (f"<<{word}>>" in trial.text) == trial.truth
        else:
            assert (word in trial.text) == trial.truth


@pytest.mark.parametrize("seed", range(5))
def test_merit_is_what_counting_and_the_ranks_say(seed):
    draw = random.Random(seed)
    truth = [True, False, *(draw.random() < 0.4 for _ in range(20))]
    chance = [draw.choice([draw.random(), 0.3]) for _ in truth]
    found = merit(truth, chance)
    hit = [(c > 0.5) == t for t, c in zip(truth, chance, strict=True)]
    shares = [
        sum(h for h, t in zip(hit, truth, strict=True) if t == kind) / truth.count(kind)
        for kind in (True, False)
    ]
    assert found is not None
    assert found.balanced == pytest.approx(sum(shares) / 2)
    assert found.auc == pytest.approx(auroc(torch.tensor(chance), torch.tensor(truth)), abs=1e-6)


def test_who_always_says_yes_is_at_chance_and_who_knows_is_perfect():
    truth = [True] * 7 + [False] * 3
    assert merit(truth, [1.0] * 10) == Merit(0.5, None, 10)
    assert merit(truth, [float(t) for t in truth]) == Merit(1.0, None, 10)
    assert merit(truth, [None] * 7 + [0.2] * 3) is None


def test_a_score_is_the_mean_of_the_tests_that_have_one():
    trials = [
        JudgeTrial(test, "", truth) for test in ("detection", "fuzzing") for truth in (1 > 0, 1 < 0)
    ]
    found = merits(trials, [1.0, 0.0, 1.0, 1.0])
    assert score_of(found) == pytest.approx(0.75)
    assert list(merits(trials, [1.0, 0.0, None, 1.0])) == ["detection"]
    assert score_of({}) is None


@pytest.mark.parametrize(
    ("answer", "chance"),
    [(Answer("Yes."), 1.0), (Answer("**no**, yes"), 0.0), (Answer("maybe"), None),
     (Answer("no", chances=(0.7, 0.3)), 0.7), (Answer("nothing"), None)],
)  # fmt: skip
def test_a_verdict_is_the_first_yes_or_no_or_its_chance(answer, chance):
    assert verdict(answer) == chance


@pytest.mark.parametrize(
    ("explanation", "test", "text", "said"),
    [("fires on: “dog”, “cat”; raises “sun”", "detection", "a cat sat", 1.0),
     ("fires on: “dog”, “cat”; raises “sun”", "detection", "the sun, cats", 0.0),
     ("fires on: “dog”", "fuzzing", "dog <<sat>>", 0.0),
     ("fires on: “dog”", "fuzzing", "<<dog>> sat", 1.0),
     ("This token is a month, such as may.", "detection", "in may the dog", 1.0),
     ("This token is a month.", "detection", "a token in may", 0.0), ("", "detection", "x", 0.0)],
)  # fmt: skip
def test_words_are_looked_for(explanation, test, text, said):
    assert by_words(explanation, JudgeTrial(test, text, truth=True)) == said


def test_questions_about_one_explanation_begin_alike_and_name_the_choices():
    trials = [JudgeTrial("detection", text, truth=True) for text in ("one", "two")]
    one, two = (judge_question("judge/own/1", "names", t, i) for i, t in enumerate(trials))
    assert one.key != two.key
    assert one.user.partition("Text:")[0] == two.user.partition("Text:")[0]
    assert one.choices == ("yes", "no")
    assert "no description" in judge_question("judge/empty/1", "", trials[0], 0).user


def test_the_interval_covers_the_mean_as_often_as_it_says():
    draw = np.random.default_rng(3)
    inside = 0
    for _ in range(100):
        mean, low, high = interval(draw.normal(0.6, 0.1, 30))
        assert low <= mean <= high
        inside += low <= 0.6 <= high
    assert 85 <= inside <= 99
