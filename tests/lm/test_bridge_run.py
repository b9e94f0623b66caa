"""One forward pass that edits sites, reads sites, and lets gradients reach the edits alone."""

import pytest
import torch

from saelab.config import UsageError
from saelab.lm.load import load_language_model
from saelab.lm.protocol import LanguageModel

EDITED, HEADS, LATER = "blocks.0.hook_resid_post", "blocks.1.attn.hook_z", "blocks.1.hook_resid_pre"


@pytest.fixture(scope="module")
def exact_lm(checkpoint):
    """The random checkpoint in float64, so that finite differences are exact."""
    return load_language_model(str(checkpoint), device="cpu", dtype=torch.float64)


@pytest.fixture
def tokens():
    return torch.randint(1, 14, (3, 10), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def gradients_left(random_lm):
    """What a backward pass may not leave behind, asked for after it."""
    parameters = list(random_lm._bridge.parameters())
    return lambda: [p for p in parameters if p.requires_grad or p.grad is not None]


def shifted(amount):
    return lambda x: x + amount


def test_the_bridge_is_a_language_model(random_lm):
    assert isinstance(random_lm, LanguageModel)


def test_a_plain_run_has_the_logits_and_nothing_else(random_lm, tokens):
    out = random_lm.run(tokens)
    assert torch.equal(out.logits, random_lm.logits(tokens))
    assert out.activations == {}
    assert not out.logits.requires_grad


def test_a_run_reads_exactly_what_a_capture_reads(random_lm, tokens):
    hooks = [EDITED, HEADS, "blocks.1.mlp.hook_post", EDITED]
    found = random_lm.run(tokens, hooks=hooks).activations
    expected = random_lm.capture(tokens, hooks)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value)


@pytest.mark.parametrize("edited", [EDITED, HEADS])
def test_an_edited_hook_is_read_after_its_edit(random_lm, tokens, edited):
    before = random_lm.capture(tokens, [edited])[edited]
    found = random_lm.run(tokens, edits={edited: shifted(1.0)}, hooks=[edited]).activations
    assert torch.equal(found[edited], before + 1.0)


@pytest.mark.parametrize("first", ["blocks.1.attn.hook_out", "blocks.1.hook_attn_out"])
def test_both_names_of_a_hook_are_read_as_edited(random_lm, tokens, first):
    second = {"blocks.1.attn.hook_out", "blocks.1.hook_attn_out"} - {first}
    hooks = [*second, first]
    found = random_lm.run(tokens, edits={first: torch.zeros_like}, hooks=hooks).activations
    assert not any(found[hook].any() for hook in hooks)


def test_hooks_before_the_edit_keep_their_values_and_later_ones_do_not(random_lm, tokens):
    hooks = ["blocks.0.hook_resid_pre", LATER]
    plain = random_lm.capture(tokens, hooks)
    found = random_lm.run(tokens, edits={EDITED: shifted(1.0)}, hooks=hooks).activations
    assert torch.equal(found[hooks[0]], plain[hooks[0]])
    assert torch.equal(found[LATER], plain[LATER] + 1.0)


@pytest.mark.parametrize("edited", [EDITED, HEADS, "hook_embed"])
def test_gradients_through_an_edit_are_finite_differences(exact_lm, tokens, edited):
    """Along a random direction of the edit's parameter, of the logits and of a later site."""
    generator = torch.Generator().manual_seed(1)
    theta, along = torch.randn(2, 16, generator=generator, dtype=torch.float64)
    weights = torch.randn(exact_lm.info.d_vocab, generator=generator, dtype=torch.float64)

    def loss(theta):
        last = "blocks.1.hook_resid_post"
        out = exact_lm.run(tokens, edits={edited: shifted(theta)}, hooks=[last])
        return (out.logits * weights).sum() + out.activations[last].pow(2).sum()

    (gradient,) = torch.autograd.grad(loss(theta.requires_grad_()), theta)
    with torch.no_grad():
        slope = (loss(theta + 1e-5 * along) - loss(theta - 1e-5 * along)) / 2e-5
    assert float(gradient @ along) == pytest.approx(float(slope), rel=1e-6)


def test_every_later_stream_of_the_shipped_model_reaches_the_edit(tiny_lm):
    tokens = torch.randint(2, 784, (2, 12), generator=torch.Generator().manual_seed(0))
    theta = torch.zeros(tiny_lm.info.d_model, requires_grad=True)
    later = ["blocks.2.hook_resid_pre", "blocks.3.hook_resid_pre"]
    edits = {"blocks.1.hook_resid_pre": shifted(theta)}
    out = tiny_lm.run(tokens, edits=edits, hooks=["blocks.0.hook_resid_pre", *later])
    assert not out.activations["blocks.0.hook_resid_pre"].requires_grad
    for value in (out.logits, *(out.activations[hook] for hook in later)):
        (gradient,) = torch.autograd.grad(value.pow(2).sum(), theta, retain_graph=True)
        assert gradient.isfinite().all()
        assert gradient.abs().min() > 0


def test_no_gradient_reaches_the_weights(random_lm, tokens, gradients_left):
    theta = torch.zeros(16, requires_grad=True)
    out = random_lm.run(tokens, edits={EDITED: shifted(theta)}, hooks=[LATER])
    (out.logits.logsumexp(-1).sum() + out.activations[LATER].pow(2).sum()).backward()
    assert theta.grad is not None
    assert theta.grad.any()
    assert gradients_left() == []


def test_edits_at_two_sites_both_get_their_gradient(random_lm, tokens):
    first, second = (torch.zeros(16, requires_grad=True) for _ in range(2))
    edits = {EDITED: shifted(first), HEADS: shifted(second)}
    random_lm.run(tokens, edits=edits).logits.pow(2).sum().backward()
    for theta in (first, second):
        assert theta.grad is not None
        assert theta.grad.any()


def test_a_detached_replacement_stops_the_gradient(random_lm, tokens):
    theta = torch.zeros(16, requires_grad=True)
    edits = {EDITED: shifted(theta), "blocks.1.hook_resid_pre": torch.zeros_like}
    out = random_lm.run(tokens, edits=edits, hooks=[EDITED])
    assert out.activations[EDITED].requires_grad
    assert not out.logits.requires_grad


def test_without_grad_mode_there_is_no_graph(random_lm, tokens):
    theta = torch.zeros(16, requires_grad=True)
    edits = {EDITED: shifted(theta)}
    with torch.no_grad():
        out = random_lm.run(tokens, edits=edits, hooks=[LATER])
    assert not out.logits.requires_grad
    assert not out.activations[LATER].requires_grad
    assert not random_lm.logits(tokens, edits).requires_grad


def test_a_run_leaves_no_hook_behind(random_lm, tokens):
    before = random_lm.logits(tokens)
    random_lm.run(tokens, edits={EDITED: torch.zeros_like}, hooks=[HEADS])
    assert torch.equal(random_lm.logits(tokens), before)


def test_a_run_refuses_what_it_cannot_read_or_replace(random_lm, tokens):
    with pytest.raises(UsageError, match=r"no hook 'blocks.7.hook_resid_post'"):
        random_lm.run(tokens, hooks=["blocks.7.hook_resid_post"])
    with pytest.raises(UsageError, match=r"no vector per token"):
        random_lm.run(tokens, hooks=["blocks.0.attn.hook_pattern"])
    with pytest.raises(UsageError, match="can be read but not replaced"):
        random_lm.run(tokens, edits={"blocks.0.hook_resid_mid": torch.zeros_like})
    assert random_lm.run(tokens, hooks=["blocks.0.hook_resid_mid"]).activations


def test_a_hook_that_does_not_fire_is_an_error_read_or_edited(random_lm, tokens):
    """Queries, keys and values are computed apart: nothing passes their common projection."""
    silent = "blocks.1.attn.qkv.hook_in"
    with pytest.raises(UsageError, match="does not fire"):
        random_lm.run(tokens, hooks=[silent])
    with pytest.raises(RuntimeError, match="never applied"):
        random_lm.run(tokens, edits={silent: torch.zeros_like})
