"""A dose-response is one steering a strength, all in one batch."""

import math
from typing import Any

import pytest
from analysis.steering.cases import PROMPT, steerable

from saelab.analysis.steering.dose import dose_response
from saelab.analysis.steering.generate import (
    Sampling,
    edits_for,
    generate,
    plain_log_probs,
    repetition,
)
from saelab.analysis.steering.interventions import Intervention
from saelab.analysis.steering.lens import lens_tokens
from saelab.config import UsageError
from saelab.lm.prompt import encode_prompt

STRENGTHS = (0.0, 2.0, 8.0)
SAMPLING = Sampling(n_tokens=5, temperature=0.8, n_samples=2, seed=6)
CHANGE = Intervention(latents=(2, 11))


@pytest.fixture(scope="module", params=["keep", "drop"])
def change(request) -> Intervention:
    return CHANGE.model_copy(update={"error": request.param})


@pytest.fixture(scope="module")
def model(perturbed_lm):
    return steerable(perturbed_lm)


@pytest.fixture(scope="module")
def dose(model, change):
    return dose_response(model, change, PROMPT, STRENGTHS, target="dog", sampling=SAMPLING)


def test_every_strength_equals_steering_at_it_alone(model, change, dose):
    tokens = encode_prompt(model.lm, PROMPT)[None]
    plain = model.lm.logits(tokens)[0, -1].double().log_softmax(-1)
    target = model.lm.tokenizer.encode("dog")[0]
    for i, strength in enumerate(STRENGTHS):
        edits = edits_for(model, [change.with_amount(strength)], tokens.shape[1])
        steered = model.lm.logits(tokens, edits(tokens))[0, -1].double().log_softmax(-1)
        assert dose.target_log_prob[i] == pytest.approx(float(steered[target]), abs=1e-4)
        kl = float((plain.exp() * (plain - steered)).sum())
        assert dose.kl[i] == pytest.approx(kl, abs=1e-4)
        prompts = tokens.expand(2, -1)
        new = generate(model.lm, prompts, SAMPLING, edits)
        repeated = [repetition(row) for row in new.tolist()]
        assert dose.repetition[i] == pytest.approx(sum(repeated) / 2)
        perplexity = math.exp(-float(plain_log_probs(model.lm, prompts, new).mean()))
        assert dose.perplexity[i] == pytest.approx(perplexity, rel=1e-3)
        assert dose.texts[i] == tuple(model.lm.tokenizer.token(t) for t in new[0].tolist())


def test_strength_zero_costs_nothing_where_the_error_is_kept_and_the_error_where_not(dose, change):
    if change.error == "keep":
        assert dose.kl[0] == pytest.approx(0, abs=1e-6)
    else:
        assert dose.kl[0] > 1e-3


def test_the_default_target_is_what_the_latents_promise_together(model):
    for sign in (1, -1):
        found = dose_response(model, CHANGE, PROMPT, (0, sign * 4), sampling=SAMPLING)
        direction = sign * (model.sae.W_dec[2] + model.sae.W_dec[11])
        promised = int(lens_tokens(model.lm, model.writes, direction[None], 1))
        assert found.target == model.lm.tokenizer.token(promised)


def test_values_are_json_ready_and_the_figure_has_the_four_curves(dose):
    values = dose.values()
    assert values["change"]["latents"] == [2, 11]
    assert values["target"] == "dog"
    curves: Any = dose.figure().data
    assert len(curves) == 4
    assert list(curves[1].y) == list(dose.kl)
    assert all(list(curve.x) == list(STRENGTHS) for curve in curves)


@pytest.mark.parametrize("target", ["the dog", "elephant", ""])
def test_a_target_that_is_not_one_known_token_is_refused(model, target):
    with pytest.raises(UsageError, match="give exactly one token"):
        dose_response(model, CHANGE, PROMPT, STRENGTHS, target=target)


def test_a_site_that_promises_no_tokens_needs_a_target(perturbed_lm):
    model = steerable(perturbed_lm, site="blocks.1.ln2.hook_normalized")
    with pytest.raises(UsageError, match="default targets need"):
        dose_response(model, CHANGE, PROMPT, STRENGTHS)
