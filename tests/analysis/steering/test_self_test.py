"""The self-test believes a change that took effect and no other."""

import pytest
import torch
from analysis.steering.cases import PROMPT, break_edits, steerable

from saelab.analysis.steering.interventions import Intervention, position_mask
from saelab.analysis.steering.self_test import verify
from saelab.lm.prompt import encode_prompt

OPS = [
    {"op": "add", "amount": 3.0},
    {"op": "add", "amount": -3.0, "unit": "latent_max"},
    {"op": "clamp", "amount": 2.0, "unit": "absolute"},
    {"op": "scale", "amount": 0.5},
    {"op": "ablate"},
]


@pytest.fixture
def tokens(perturbed_lm):
    return encode_prompt(perturbed_lm, PROMPT)[None]


@pytest.mark.parametrize("error", ["keep", "drop"])
@pytest.mark.parametrize("variant", ["topk", "abs-topk"])
@pytest.mark.parametrize("options", OPS, ids=lambda o: f"{o['op']}{o.get('amount', '')}")
def test_every_operation_passes(perturbed_lm, tokens, variant, error, options):
    model = steerable(perturbed_lm, variant)
    change = Intervention(latents=(1, 7, 20), error=error, positions="all", **options)
    mask = position_mask(perturbed_lm, tokens, "all", tokens.shape[1])
    effect = verify(model, tokens, [change], mask)
    assert effect.n_rows == tokens.shape[1] - 1
    if error == "drop":
        assert effect.n_changed == effect.n_rows


def test_the_effect_counts_changed_rows_and_their_relative_length(perturbed_lm, tokens):
    model = steerable(perturbed_lm)
    mask = position_mask(perturbed_lm, tokens, "last", tokens.shape[1])
    change = Intervention(latents=(3,), amount=2.0, unit="absolute")
    effect = verify(model, tokens, [change], mask)
    x = perturbed_lm.capture(tokens, [model.writes])[model.writes][0, -1]
    assert (effect.n_rows, effect.n_changed) == (1, 1)
    assert effect.shift == pytest.approx(2 / float(x.norm()), rel=1e-4)
    nothing = verify(model, tokens, [change.with_amount(0)], mask)
    assert (nothing.n_changed, nothing.shift) == (0, 0.0)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda value, edited, mask: value, "missed what was asked"),
        (lambda value, edited, mask: edited + 0.01 * mask[..., None], "missed what was asked"),
        (lambda value, edited, mask: edited + 0.01, "was to leave alone"),
    ],
    ids=["does nothing", "writes something else", "writes elsewhere too"],
)
def test_a_broken_edit_is_found(perturbed_lm, tokens, damage, message, monkeypatch):
    model = steerable(perturbed_lm)
    break_edits(monkeypatch, damage)
    mask = position_mask(perturbed_lm, tokens, "last", tokens.shape[1])
    with pytest.raises(RuntimeError, match=message):
        verify(model, tokens, [Intervention(latents=(3,), amount=2.0)], mask)


def test_logits_that_do_not_notice_are_found(perturbed_lm, tokens, monkeypatch):
    model = steerable(perturbed_lm)
    whole = type(perturbed_lm).run

    def deaf(self, tokens, *, edits=None, hooks=()):
        out = whole(self, tokens, edits=edits, hooks=hooks)
        return type(out)(torch.zeros_like(out.logits), out.activations)

    monkeypatch.setattr(type(perturbed_lm), "run", deaf)
    mask = position_mask(perturbed_lm, tokens, "last", tokens.shape[1])
    with pytest.raises(RuntimeError, match="did not notice"):
        verify(model, tokens, [Intervention(latents=(3,), amount=2.0)], mask)
