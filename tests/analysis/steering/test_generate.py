"""Generation: what is reported of a text is what the models say of it."""

import math

import pytest
import torch
from analysis.steering.cases import PROMPT, steerable
from hypothesis import given
from hypothesis import strategies as st

from saelab.analysis.steering.generate import (
    Sampling,
    edits_for,
    generate,
    plain_log_probs,
    repetition,
    steer,
)
from saelab.analysis.steering.interventions import Intervention
from saelab.config import UsageError
from saelab.lm.prompt import encode_prompt

CHANGE = Intervention(latents=(3,), amount=6.0)


@pytest.fixture
def model(perturbed_lm):
    return steerable(perturbed_lm)


@pytest.fixture
def tokens(perturbed_lm):
    return encode_prompt(perturbed_lm, PROMPT)


def test_greedy_is_the_argmax_step_by_step(model, tokens):
    edits = edits_for(model, [CHANGE], len(tokens))
    found = generate(model.lm, tokens[None], Sampling(n_tokens=5), edits)[0].tolist()
    context = tokens.tolist()
    for token in found:
        steered = torch.tensor([context])

        def edit(x):
            x = x.clone()
            for p in range(len(tokens) - 1, x.shape[1]):
                scale = model.sae.encode(x[:, p]).dense().abs().max()
                x[0, p] += 6 * scale * model.sae.W_dec[3]
            return x

        logits = model.lm.logits(steered, {model.writes: edit})
        assert token == int(logits[0, -1].argmax())
        context.append(token)
    assert found != generate(model.lm, tokens[None], Sampling(n_tokens=5))[0].tolist()


def test_every_generated_token_is_steered_and_the_prompt_only_at_its_end(model, tokens):
    contexts = torch.cat([tokens, torch.tensor([5, 6])])[None]
    edit = edits_for(model, [CHANGE], len(tokens))(contexts)[model.writes]
    value = torch.randn(1, contexts.shape[1], 16)
    changed = (edit(value) != value).any(dim=2)[0].tolist()
    assert changed == [False] * (len(tokens) - 1) + [True] * 3


def test_log_probabilities_and_kl_are_those_of_the_two_models(model, tokens):
    found = steer(model, CHANGE, PROMPT, Sampling(n_tokens=3))
    ids = [model.lm.tokenizer.encode(token.text)[0] for token in found.steered[0].tokens]
    context = torch.cat([tokens, torch.tensor(ids)])[None]
    edits = edits_for(model, [CHANGE], len(tokens))(context)
    steered = model.lm.logits(context, edits)[0].double().log_softmax(-1)
    plain = model.lm.logits(context)[0].double().log_softmax(-1)
    for step, (token, number) in enumerate(zip(found.steered[0].tokens, ids, strict=True)):
        place = len(tokens) - 1 + step
        assert token.log_prob == pytest.approx(float(steered[place, number]), abs=1e-4)
        assert token.plain_log_prob == pytest.approx(float(plain[place, number]), abs=1e-4)
        kl = float((plain[place].exp() * (plain[place] - steered[place])).sum())
        assert token.kl == pytest.approx(kl, abs=1e-4)
        assert token.kl > 0.01
    log_probs = [token.plain_log_prob for token in found.steered[0].tokens]
    assert found.steered[0].perplexity == pytest.approx(math.exp(-sum(log_probs) / 3), rel=1e-4)


def test_strength_zero_says_what_the_plain_model_says(model):
    sampling = Sampling(n_tokens=6, temperature=0.9, n_samples=3, seed=4)
    found = steer(model, CHANGE.with_amount(0), PROMPT, sampling)
    assert found.plain == found.steered
    assert all(token.kl == 0 for c in found.steered for token in c.tokens)
    assert (found.effect.n_rows, found.effect.n_changed) == (3, 0)


def test_samples_repeat_with_the_seed_and_do_not_depend_on_the_batch(model, tokens):
    sampling = Sampling(n_tokens=6, temperature=1.0, seed=1)
    four = generate(model.lm, tokens.expand(4, -1), sampling)
    again = generate(model.lm, tokens.expand(2, -1), sampling, samples=[2, 0])
    assert again.tolist() == [four[2].tolist(), four[0].tolist()]
    assert len({tuple(row) for row in four.tolist()}) > 1
    other = generate(model.lm, tokens.expand(4, -1), sampling.model_copy(update={"seed": 2}))
    assert not torch.equal(four, other)


def test_samples_follow_the_model_s_distribution(model, tokens):
    n, temperature = 3000, 0.7
    sampling = Sampling(n_tokens=1, temperature=temperature, seed=3)
    drawn = generate(model.lm, tokens.expand(n, -1), sampling)[:, 0]
    expected = (model.lm.logits(tokens[None])[0, -1] / temperature).softmax(-1)
    share = torch.bincount(drawn, minlength=len(expected)) / n
    # Three standard deviations of the largest share, sqrt(1/4/n), are 0.027.
    assert float((share - expected).abs().max()) < 0.03
    assert float(expected.max()) < 0.95


def test_plain_log_probs_are_the_likelihood_of_the_text(model, tokens):
    new = torch.tensor([[5, 6, 7]])
    full = torch.cat([tokens[None], new], dim=1)
    expected = model.lm.logits(full)[0, len(tokens) - 1 : -1].log_softmax(-1)
    expected = expected[torch.arange(3), new[0]]
    assert torch.allclose(plain_log_probs(model.lm, tokens[None], new)[0], expected, atol=1e-5)


def test_json_values_hold_everything(model):
    values = steer(model, CHANGE, PROMPT, Sampling(n_tokens=2)).values()
    assert values["change"]["latents"] == [3]
    assert len(values["steered"][0]["tokens"]) == 2
    assert set(values["plain"][0]) == {"text", "perplexity", "repetition", "tokens"}


def test_text_beyond_the_context_is_refused(model, tokens):
    with pytest.raises(UsageError, match="7 tokens of prompt and 26 more exceed the 32"):
        generate(model.lm, torch.cat([tokens, tokens[-1:]])[None], Sampling(n_tokens=26))


def test_repetition_by_hand():
    assert repetition(["a", "b", "c"]) == 0
    # ab, ba, ab, ba: two of four were there before.
    assert repetition(["a", "b", "a", "b", "a"]) == 0.5
    assert repetition(["a"]) == 0


@given(st.lists(st.sampled_from("ab"), max_size=20))
def test_repetition_is_a_share(tokens):
    assert 0 <= repetition(tokens) < 1


def test_a_continuation_is_the_text_of_its_tokens(model):
    said = steer(model, CHANGE, PROMPT, Sampling(n_tokens=4)).plain[0]
    words = [token.text for token in said.tokens]
    assert said.text == " ".join(words)
    assert said.values()["text"] == said.text
