"""Steering success is counted as the paper counts it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SENTENCE

from saelab.analysis.steering.chance import chance_scores
from saelab.analysis.steering.edits import with_maxima
from saelab.analysis.steering.measures import ScoreOptions
from saelab.analysis.steering.scores import steering_scores
from saelab.analysis.steering.success import (
    FACTORS,
    SuccessOptions,
    before_stop,
    best_factor,
    count_promised,
    steering_success,
)
from saelab.config import UsageError
from saelab.host.host import Host

STOP = 9


def test_promised_tokens_are_counted_with_repeats_up_to_the_stop():
    new = torch.tensor([[1, 2, 1, STOP, 1], [3, 4, 5, 6, 7], [STOP, 1, 1, 1, 1]])
    assert before_stop(new, STOP).tolist() == [
        [True, True, True, True, False],
        [True] * 5,
        [True, False, False, False, False],
    ]
    assert count_promised(new, torch.tensor([1, 5]), STOP).tolist() == [2, 1, 0]
    assert count_promised(new, torch.tensor([STOP]), STOP).tolist() == [1, 0, 1]


def test_the_best_factor_has_most_success_for_its_perplexity_but_not_too_much():
    assert best_factor(np.array([1.0, 2.0, 2.0]), np.array([1.0, 1.5, 3.0])) == 1
    assert best_factor(np.array([1.0, 2.0, 3.1]), np.array([1.0, 2.5, 0.1])) == 0
    assert best_factor(np.array([4.0, 5.0]), np.array([1.0, 1.0])) == 0


@pytest.fixture(scope="module")
def scores(featured_run, random_lm):
    return steering_scores(featured_run, random_lm, ScoreOptions(prompt=SENTENCE, n_lens=4))


OPTIONS = SuccessOptions(n_latents=3, n_directions=2, n_prefixes=2, prefix_length=4, n_tokens=4)


def test_a_run_s_latents_are_steered_at_the_paper_s_factors(featured_run, random_lm, scores):
    found = steering_success(featured_run, random_lm, scores, OPTIONS)
    assert len(found.latents) == 3
    for one in found.latents:
        assert one.factor in FACTORS
        assert 0 <= one.success <= 4
        assert one.perplexity >= 1
        assert scores.n_examples[scores.row(one.latent, one.sign)] > 0
        assert one.output == pytest.approx(scores.output[scores.row(one.latent, one.sign)])
    chance = chance_scores(with_maxima(Host.of_run(featured_run, random_lm)), scores)
    assert [one.output for one in found.directions] == pytest.approx(chance[:2].tolist())
    (row,) = (row for row in found.filters if (row.score, row.threshold) == ("random", None))
    assert row.success == pytest.approx(np.mean([one.success for one in found.directions]))
    again = steering_success(featured_run, random_lm, scores, OPTIONS)
    assert again.values() == found.values()


@pytest.mark.parametrize("pole", [1, -1])
def test_success_equals_steering_the_latent_by_hand(featured_run, random_lm, scores, pole):
    from saelab.analysis.steering.generate import Sampling, edits_for, generate, plain_log_probs
    from saelab.analysis.steering.interventions import Intervention
    from saelab.host.host import Host
    from saelab.host.text import corpus_of

    scores = replace(scores, sign=np.full_like(scores.sign, pole))
    one = steering_success(featured_run, random_lm, scores, OPTIONS).latents[0]
    model = with_maxima(Host.of_run(featured_run, random_lm))
    corpus = corpus_of(featured_run, random_lm, "held-out")
    prefixes = torch.from_numpy(corpus.read(0, 2).tokens[:, :4]).long()
    change = Intervention(latents=(one.latent,), amount=one.sign * one.factor)
    sampling = Sampling(n_tokens=4, temperature=0.7)
    new = generate(random_lm, prefixes, sampling, edits_for(model, [change], 4))
    promised = set(scores.words(scores.lens[scores.row(one.latent, one.sign)]))
    log_probs = plain_log_probs(random_lm, prefixes, new)
    said, total, n = 0, 0.0, 0
    for row, text in enumerate(new.tolist()):
        for place, token in enumerate(text):
            word = random_lm.tokenizer.token(token)
            said += word in promised
            total -= float(log_probs[row, place])
            n += 1
            if word == ".":
                break
    assert one.success == pytest.approx(said / 2)
    assert one.perplexity == pytest.approx(np.exp(total / n), rel=1e-3)


def test_prefixes_that_no_context_has_and_stops_of_several_tokens_are_refused(
    featured_run, random_lm, scores
):
    for changes, message in (
        ({"prefix_length": 20}, "No held-out context has 20 tokens"),
        ({"stop": "the cat"}, "is 2 tokens"),
    ):
        options = OPTIONS.model_copy(update=changes)
        with pytest.raises(UsageError, match=message):
            steering_success(featured_run, random_lm, scores, options)
