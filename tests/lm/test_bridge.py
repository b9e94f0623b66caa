"""Reading and replacing activations of a model, on a random checkpoint."""

import pytest
import torch

from saelab.config import UsageError
from saelab.lm.load import load_language_model

RESIDUAL, HEADS = "blocks.0.hook_resid_post", "blocks.1.attn.hook_z"


@pytest.fixture
def tokens():
    return torch.randint(1, 14, (3, 10), generator=torch.Generator().manual_seed(0))


def test_the_checkpoint_says_what_it_is(random_lm, checkpoint):
    info = random_lm.info
    assert (info.n_layers, info.d_model, info.n_heads, info.d_vocab) == (
        2,
        16,
        4,
        random_lm.info.d_vocab,
    )
    assert info.name == str(checkpoint.resolve())
    assert (info.bos_token_id, info.special_token_ids) == (0, (0, 1))


def test_equal_weights_have_equal_digests(random_lm, checkpoint):
    again = load_language_model(str(checkpoint), device="cpu")
    assert again.info == random_lm.info


def test_one_pass_captures_several_sites_with_heads_flattened(random_lm, tokens):
    found = random_lm.capture(tokens, [RESIDUAL, HEADS])
    assert {name: tuple(x.shape) for name, x in found.items()} == {
        RESIDUAL: (3, 10, 16),
        HEADS: (3, 10, 16),
    }


def test_capture_equals_hugging_face(random_lm, checkpoint, tokens):
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager").eval()
    with torch.no_grad():
        hidden = plain(tokens, output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(random_lm.capture(tokens, [RESIDUAL])[RESIDUAL], hidden)


def test_capture_stops_after_the_last_hook(random_lm, tokens):
    reached = []
    later = random_lm._bridge.hook_dict["blocks.1.hook_resid_pre"]
    later.add_hook(lambda value, hook: reached.append(hook.name))
    try:
        random_lm.capture(tokens, [RESIDUAL])
        assert reached == []
        random_lm.capture(tokens, [RESIDUAL, HEADS])
        assert reached
    finally:
        later.remove_hooks()


def test_capturing_leaves_no_hook_behind(random_lm, tokens):
    before = random_lm.logits(tokens)
    random_lm.capture(tokens, [RESIDUAL])
    assert torch.equal(random_lm.logits(tokens), before)


@pytest.mark.parametrize("hook", [RESIDUAL, HEADS])
def test_splicing_the_original_gives_exactly_the_models_own_logits(random_lm, tokens, hook):
    original = random_lm.capture(tokens, [hook])[hook]
    spliced = random_lm.logits(tokens, {hook: lambda _: original})
    assert torch.equal(spliced, random_lm.logits(tokens))


@pytest.mark.parametrize("hook", ["blocks.2.hook_resid_post", "blocks.2.attn.hook_z"])
def test_splicing_the_original_into_the_shipped_model_is_exact_too(tiny_lm, hook):
    tokens = torch.randint(2, 784, (2, 20), generator=torch.Generator().manual_seed(0))
    original = tiny_lm.capture(tokens, [hook])[hook]
    assert torch.equal(tiny_lm.logits(tokens, {hook: lambda _: original}), tiny_lm.logits(tokens))


def test_splicing_zeros_into_the_heads_is_the_zero_ablation(random_lm, tokens):
    """With z = 0 the attention layer writes only b_O."""
    spliced = random_lm.logits(tokens, {HEADS: torch.zeros_like})
    b_O = random_lm._bridge.blocks[1].attn.b_O
    ablated = random_lm.logits(tokens, {"blocks.1.hook_attn_out": lambda x: b_O.expand_as(x)})
    torch.testing.assert_close(spliced, ablated)


def test_splicing_zeros_into_the_last_residual_leaves_a_constant(random_lm, tokens):
    logits = random_lm.logits(tokens, {"blocks.1.hook_resid_post": torch.zeros_like})
    torch.testing.assert_close(logits, logits[:1, :1].expand_as(logits))


def test_two_sites_can_be_edited_at_once(random_lm, tokens):
    edits = {RESIDUAL: torch.ones_like, HEADS: torch.ones_like}
    both = random_lm.logits(tokens, edits)
    for hook, edit in edits.items():
        assert not torch.equal(both, random_lm.logits(tokens, {hook: edit}))


@pytest.mark.parametrize("hook", [RESIDUAL, "blocks.1.hook_resid_pre", "hook_embed"])
def test_after_a_whole_replacement_the_input_no_longer_matters(random_lm, tokens, hook):
    other = tokens.flip(0, 1)
    edits = {hook: torch.ones_like}
    same_positions = {"hook_pos_embed": torch.zeros_like} if hook == "hook_embed" else {}
    first, second = (random_lm.logits(t, edits | same_positions) for t in (tokens, other))
    assert torch.equal(first, second)


def test_a_site_that_the_skip_connection_bypasses_cannot_be_replaced(random_lm, tokens):
    with pytest.raises(UsageError, match="can be read but not replaced"):
        random_lm.logits(tokens, {"blocks.0.hook_resid_mid": torch.zeros_like})


def test_an_unknown_hook_is_answered_with_the_nearest(random_lm, tokens):
    with pytest.raises(UsageError, match=r"no hook 'blocks.0.hook_resid_pots'.*hook_resid_post"):
        random_lm.capture(tokens, ["blocks.0.hook_resid_pots"])
    with pytest.raises(UsageError, match=r"blocks.7"):
        random_lm.logits(tokens, {"blocks.7.hook_resid_post": torch.zeros_like})


def test_a_hook_without_a_vector_per_token_is_refused_with_its_shape(random_lm):
    with pytest.raises(UsageError, match=r"no vector per token.*\(1, 4, 2, 2\)"):
        random_lm.width("blocks.0.attn.hook_pattern")


def test_logit_effects_are_the_direct_path_of_the_last_residual(random_lm):
    """At the last residual stream the direct path is all there is: a finite difference agrees."""
    hook = "blocks.1.hook_resid_post"
    direction = torch.randn(1, 16, generator=torch.Generator().manual_seed(0))
    base = torch.randn(16, generator=torch.Generator().manual_seed(1))
    tokens = torch.zeros(1, 1, dtype=torch.long)

    def logits(step: float) -> torch.Tensor:
        value = (base + step * (direction[0] - direction[0].mean())).expand(1, 1, 16)
        return random_lm.logits(tokens, {hook: lambda _: value})[0, 0]

    # The final norm's scale moves too; projecting it out leaves the linear part.
    centred = base - base.mean()
    along = direction - direction.mean()
    orthogonal = along - (along @ centred) / (centred @ centred) * centred
    step = 1e-2
    value_up = (base + step * orthogonal[0]).expand(1, 1, 16)
    up = random_lm.logits(tokens, {hook: lambda _: value_up})[0, 0]
    slope = (up - logits(0.0)) / step * centred.pow(2).mean().sqrt()
    slope = slope - slope.mean()
    effects = random_lm.logit_effects(hook, orthogonal)[0]
    torch.testing.assert_close(slope, effects, atol=2e-3, rtol=2e-2)


def test_head_directions_reach_the_logits_through_W_O(random_lm):
    direction = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    W_O = random_lm._bridge.W_O[1].flatten(0, 1)
    through = random_lm.logit_effects("blocks.1.hook_resid_post", direction @ W_O)
    torch.testing.assert_close(random_lm.logit_effects(HEADS, direction), through)


def test_sites_without_a_direct_path_have_no_logit_effects(random_lm):
    assert random_lm.logit_effects("blocks.0.attn.hook_q", torch.zeros(1, 16)) is None


def test_a_name_that_is_nothing_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="Cannot load the model 'no-such-model'"):
        load_language_model("no-such-model", device="cpu")


def test_a_directory_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"without a config\.json"):
        load_language_model(str(tmp_path), device="cpu")


def test_a_device_that_is_not_there_is_refused(checkpoint):
    with pytest.raises(UsageError, match="'cuda:63' is not available"):
        load_language_model(str(checkpoint), device="cuda:63")
