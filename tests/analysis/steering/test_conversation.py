"""A conversation: each model answers after its own answers; a change of nothing changes none."""

import pytest
import torch
from analysis.steering.cases import steerable

from saelab.analysis.steering.conversation import conversation, converse, reply
from saelab.analysis.steering.generate import generate, steer
from saelab.analysis.steering.interventions import Intervention
from saelab.analysis.steering.writing import Sampling, edits_for
from saelab.config import UsageError
from saelab.lm.prompt import chat_prompt, encode_prompt

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ 'the ' if m.role == 'user' else 'a ' }}"
    "{{ m.content }} . {% endfor %}a"
)
CHANGE = Intervention(latents=(3,), amount=6.0)
SAMPLING = Sampling(n_tokens=2, temperature=1.0, seed=4)


@pytest.fixture
def model(perturbed_lm, monkeypatch):
    monkeypatch.setattr(perturbed_lm.tokenizer._tokenizer, "chat_template", TEMPLATE)
    return steerable(perturbed_lm)


def test_the_first_answers_are_those_that_steering_gives(model):
    (turn,) = converse(model, CHANGE, ["big cat"], SAMPLING)
    told = steer(model, CHANGE, chat_prompt(model.lm, "big cat"), SAMPLING)
    for answer, whole in ((turn.plain, told.plain[0]), (turn.steered, told.steered[0])):
        special = {model.lm.tokenizer.token(i) for i in model.lm.info.special_token_ids}
        n = next((i for i, t in enumerate(whole.tokens) if t.text in special), len(whole.tokens))
        assert answer.tokens == whole.tokens[:n]


def test_later_answers_follow_each_models_own(model):
    """Against generation from prompts that are written by hand."""
    first, second = converse(model, CHANGE, ["big cat", "red dog"], SAMPLING)
    later = SAMPLING.model_copy(update={"seed": SAMPLING.seed + 1})
    for side, changes in (("plain", []), ("steered", [CHANGE])):
        said = getattr(first, side).text.strip()
        text = f"the big cat . a {said} . the red dog . a"
        tokens = encode_prompt(model.lm, text)[None]
        found = generate(model.lm, tokens, later, edits_for(model, changes, tokens.shape[1]))
        names = [model.lm.tokenizer.table.name(i) for i in found[0].tolist()]
        answer = [token.text for token in getattr(second, side).tokens]
        assert answer == names[: len(answer)]
        assert chat_prompt(model.lm, conversation([first], "red dog", side)) == text


def test_a_change_of_nothing_changes_no_answer(model):
    nothing = Intervention(latents=(3,), amount=0.0)
    for turn in converse(model, nothing, ["big cat", "red dog"], SAMPLING):
        assert turn.plain.text == turn.steered.text
        torch.testing.assert_close(
            [one.log_prob for one in turn.plain.tokens],
            [one.log_prob for one in turn.steered.tokens],
            atol=1e-4, rtol=1e-4,
        )  # fmt: skip


def test_a_model_without_a_template_is_refused(perturbed_lm):
    with pytest.raises(UsageError, match="no chat template"):
        reply(steerable(perturbed_lm), CHANGE, [], "big cat", SAMPLING)
