"""Integrated gradients add up to what the patch does; attribution patching is its first step."""

from typing import Any

import pytest
import torch
from analysis.circuits.cases import hosts, prompt_of
from analysis.steering.cases import random_sae
from stand_in import answer_as

from saelab.analysis.circuits import patching
from saelab.analysis.circuits.patching import latent_effects
from saelab.config import UsageError
from saelab.host.host import Host
from saelab.lm.protocol import ModelOutput

SITE = "blocks.1.hook_resid_post"


def metric(logits):
    return logits[0, -1, 3] - logits[0, -1, 5]


@pytest.fixture(scope="module")
def sae(gpt64):
    return Host.at(gpt64, random_sae("abs-topk"), SITE)


@pytest.fixture(scope="module")
def prompts(gpt64):
    return prompt_of(gpt64), prompt_of(gpt64, "the big dog sat under a red")


def test_effects_go_to_the_patchs_total_with_the_number_of_steps(gpt64, sae, prompts):
    # P7.1
    clean, patch = prompts
    wrong = [
        abs(found.accounted - found.total)
        for n in (1, 4, 16)
        for found in [latent_effects(gpt64, sae, clean, metric, patch=patch, n_steps=n)]
    ]
    assert wrong[2] < wrong[1] < wrong[0]
    total = latent_effects(gpt64, sae, clean, metric, patch=patch, n_steps=16).total
    assert wrong[2] < 0.02 * abs(total)


def test_steps_are_taken_until_the_effects_sum_to_the_total(gpt64, sae, prompts, monkeypatch):
    clean, patch = prompts
    for other in (None, patch):
        found = latent_effects(gpt64, sae, clean, metric, patch=other)
        assert found.gap <= patching.TOLERANCE
        assert found.gap == pytest.approx(abs(found.accounted / found.total - 1), rel=1e-3)
        # Second method: midpoints, far more of them.
        monkeypatch.setattr(patching, "_points", midpoints)
        exact = latent_effects(gpt64, sae, clean, metric, patch=other, n_steps=256).latents
        monkeypatch.undo()
        assert float((found.latents - exact).abs().max()) < 0.01 * float(exact.abs().max())
    monkeypatch.setattr(patching, "TOLERANCE", -1.0)
    assert latent_effects(gpt64, sae, clean, metric).n_steps == patching.MOST_STEPS


def midpoints(n):
    return [(k + 0.5) / n for k in range(n)], [1 / n] * n


def test_the_total_is_what_the_other_prompt_does(gpt64, prompts):
    clean, patch = prompts
    last = Host.at(gpt64, random_sae(), "blocks.2.hook_resid_post")
    found = latent_effects(gpt64, last, clean, metric, patch=patch, n_steps=1)
    logits = [metric(gpt64.logits(p[None])) for p in (clean, patch)]
    assert found.total == pytest.approx(float(logits[1] - logits[0]), abs=1e-4)


def test_the_same_prompt_as_patch_has_no_effects(gpt64, sae, prompts):
    # P7.3
    found = latent_effects(gpt64, sae, prompts[0], metric, patch=prompts[0], n_steps=2)
    assert not found.latents.any()
    assert not found.error.any()
    assert found.total == 0


def test_latents_that_fire_in_neither_prompt_have_no_effect(gpt64, sae, prompts):
    # P7.5
    found = latent_effects(gpt64, sae, prompts[0], metric, n_steps=2)
    x = gpt64.capture(prompts[0][None], [SITE])[SITE][0]
    silent = sae.sae.encode(x.float()).dense() == 0
    assert not found.latents[silent].any()
    assert found.latents[~silent].any()
    # Without a patch the error stays.
    assert not found.error.any()


class Linear:
    """A model whose logits are linear in its one site."""

    def __init__(self, lm):
        self.lm, self.W = lm, torch.randn(16, 15, generator=torch.Generator().manual_seed(0))
        answer_as(self, lm)

    def run(self, tokens, *, edits=None, hooks=()):
        x = self.lm.capture(tokens, [SITE])[SITE].float()
        for edit in (edits or {}).values():
            x = edit(x)
        return ModelOutput(x.sum(1, keepdim=True).repeat(1, x.shape[1], 1) @ self.W, {})

    def logits(self, tokens, edits=None):
        return self.run(tokens, edits=edits).logits


def test_on_a_linear_model_all_methods_are_exact(gpt64, sae, prompts):
    # P7.2
    clean, patch = prompts
    lm: Any = Linear(gpt64)
    steps = ["attribution patching", 1, 7]
    # pyrefly: ignore[bad-argument-type]
    found = [latent_effects(lm, sae, clean, metric, patch=patch, n_steps=n) for n in steps]
    for one in found:
        torch.testing.assert_close(one.latents, found[0].latents, rtol=1e-4, atol=1e-4)
        assert one.accounted == pytest.approx(one.total, rel=1e-3, abs=1e-3)


def test_attribution_patching_is_the_gradient_at_the_clean_prompt(gpt64, sae, prompts):
    found = latent_effects(gpt64, sae, prompts[0], metric, n_steps="attribution patching")
    step = 1e-3
    x = gpt64.capture(prompts[0][None], [SITE])[SITE]
    codes = sae.sae.encode(x[0].float()).dense()
    position, latent = (
        int(i) for i in (found.latents.abs() == found.latents.abs().max()).nonzero()[0]
    )
    direction = sae.sae.W_dec[latent].double()

    def moved(value):
        value = value.clone()
        value[0, position] += step * direction
        return value

    change = metric(gpt64.logits(prompts[0][None], {SITE: moved})) - metric(
        gpt64.logits(prompts[0][None])
    )
    expected = -float(codes[position, latent]) * float(change) / step
    assert float(found.latents[position, latent]) == pytest.approx(expected, rel=2e-2)


def test_a_transcoders_latents_have_effects(gpt64, prompts):
    transcoder = hosts(gpt64, {}, transcoder=1)[0]
    found = latent_effects(gpt64, transcoder, prompts[0], metric, n_steps=16)
    assert found.accounted == pytest.approx(found.total, rel=0.05, abs=1e-3)


def test_prompts_of_different_lengths_are_refused(gpt64, sae, prompts):
    with pytest.raises(UsageError, match="has 8 tokens and the patch 5"):
        latent_effects(gpt64, sae, prompts[0], metric, patch=prompts[1][:5])
