"""Weights and records give back the running model, of either back end."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from analysis.circuits.cases import save_random
from lm.architectures import random_model, save_architecture

from saelab.config import UsageError
from saelab.lm.hf import load_hugging_face_model
from saelab.lm.internals import READERS, model_weights
from saelab.lm.linear.parameters import Parameters
from saelab.lm.load import load_language_model
from saelab.lm.record import check_whole, record_forward


@pytest.fixture(scope="module", params=["gpt2", "llama", "qwen2"])
def path(request, tmp_path_factory):
    return save_random(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def bridge(path):
    return load_language_model(path, device="cpu", dtype=torch.float64)


@pytest.fixture
def tokens():
    return torch.randint(2, 15, (2, 12), generator=torch.Generator().manual_seed(1))


def test_both_back_ends_give_the_same_record(path, bridge, tokens):
    other = load_hugging_face_model(path, device="cpu", dtype=torch.float64)
    mine, theirs = (record_forward(lm, model_weights(lm), tokens) for lm in (bridge, other))
    torch.testing.assert_close(mine.resid_final, theirs.resid_final, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(mine.layers[1].pattern, theirs.layers[1].pattern, rtol=0, atol=1e-5)


def test_a_record_has_what_the_model_has(bridge, tokens):
    # RMS norms and rotary angles are float32 inside the model, so only GPT-2 is exact.
    close = 1e-12 if bridge.info.architecture.startswith("GPT2") else 1e-5
    record = record_forward(bridge, model_weights(bridge), tokens)
    hooks = {
        "blocks.1.hook_resid_pre": record.layers[1].resid_pre,
        "blocks.1.hook_attn_out": record.layers[1].attn_out,
        "blocks.1.ln2.hook_out": record.layers[1].mlp_in,
        "blocks.1.attn.hook_z": record.layers[1].z_cat,
    }
    for hook, value in bridge.capture(tokens, list(hooks)).items():
        torch.testing.assert_close(hooks[hook], value, rtol=close, atol=close)
    scale = bridge.capture(tokens, ["blocks.1.ln1.hook_scale"])["blocks.1.ln1.hook_scale"]
    torch.testing.assert_close(record.layers[1].ln1_scale, scale, rtol=close, atol=close)
    logits = record.logits(model_weights(bridge), torch.arange(bridge.info.d_vocab))
    torch.testing.assert_close(logits, bridge.logits(tokens), rtol=close, atol=close)


def test_the_pattern_is_the_models_own(bridge, tokens):
    seen = {}

    def keep(value, hook):
        seen["pattern"] = value

    name = "blocks.1.attn.hook_pattern"
    bridge._bridge.run_with_hooks(tokens, fwd_hooks=[(name, keep)], return_type="logits")
    record = record_forward(bridge, model_weights(bridge), tokens)
    torch.testing.assert_close(record.layers[1].pattern, seen["pattern"], rtol=0, atol=1e-6)


def test_the_stream_is_the_sum_of_what_was_written(bridge, tokens):
    record = record_forward(bridge, model_weights(bridge), tokens)
    parts = sum(layer.attn_out + layer.mlp_out for layer in record.layers)
    total = record.embed + record.position + parts
    torch.testing.assert_close(total, record.resid_final, rtol=0, atol=1e-12)


def test_a_norms_transpose_is_its_transpose(bridge, tokens):
    weights = model_weights(bridge)
    norm, scale = weights.layers[0].ln1, torch.rand(2, 12, 1, dtype=torch.float64) + 1
    x, g = torch.randn(2, 2, 12, 16, dtype=torch.float64)
    left, right = (norm.linear(x, scale) * g).sum(), (x * norm.transpose(g, scale)).sum()
    torch.testing.assert_close(left, right)


def test_the_shipped_model_is_recorded_to_rounding(tiny_lm):
    tokens = torch.randint(2, 784, (1, 20), generator=torch.Generator().manual_seed(0))
    weights = model_weights(tiny_lm)
    logits = record_forward(tiny_lm, weights, tokens).logits(weights, torch.arange(784))
    torch.testing.assert_close(logits.float(), tiny_lm.logits(tokens), rtol=1e-4, atol=1e-4)


def test_unknown_architectures_are_refused_by_name(tmp_path):
    lm = load_language_model(save_architecture(tmp_path, "BLOOM"), device="cpu")
    with pytest.raises(UsageError, match=r"bloom, which cannot be linearised here; .* llama"):
        model_weights(lm)


def test_a_language_model_inside_another_model_is_found():
    """Of Gemma 3, those that read images too have it one level down."""
    text = random_model("Gemma 3")
    whole = torch.nn.Module()
    whole.model, whole.lm_head = torch.nn.Module(), text.lm_head
    whole.model.language_model = text.model
    config = SimpleNamespace(model_type="gemma3", get_text_config=lambda: text.config)
    alone, inside = (
        READERS[kind](Parameters(module, torch.float64, torch.device("cpu")), found)
        for kind, module, found in (("gemma3_text", text, text.config), ("gemma3", whole, config))
    )
    for mine, theirs in zip(alone.layers, inside.layers, strict=True):
        assert torch.equal(mine.W_Q, theirs.W_Q)
        assert torch.equal(mine.mlp_post.gain, theirs.mlp_post.gain)
        assert (mine.window, mine.scaling) == (theirs.window, theirs.scaling)
    assert alone.embed_scale == inside.embed_scale != 1


def test_a_model_that_does_more_than_its_weights_say_is_refused(path, tokens):
    lm = load_hugging_face_model(path, device="cpu", dtype=torch.float64)
    weights = model_weights(lm)
    first = replace(weights.layers[0], b_V=weights.layers[0].b_V + 0.5)
    weights = replace(weights, layers=(first, *weights.layers[1:]))
    with pytest.raises(UsageError, match=r"blocks.0.attn.hook_z in a way .* off \(relative\)"):
        record_forward(lm, weights, tokens)


@pytest.mark.parametrize(("part", "hook"), [("ln2", "blocks.0.mlp.hook_in"), ("b_U", "logits")])
def test_a_model_whose_mlps_or_logits_read_otherwise_is_refused(bridge, tokens, part, hook):
    weights = model_weights(bridge)
    record = record_forward(bridge, weights, tokens)
    check_whole(bridge, weights, record)
    if part == "b_U":
        weights = replace(weights, b_U=weights.b_U + torch.arange(bridge.info.d_vocab) / 100)
    else:
        first = replace(weights.layers[0], ln2=weights.ln_final)
        weights = replace(weights, layers=(first, *weights.layers[1:]))
        record = record_forward(bridge, weights, tokens)
    with pytest.raises(UsageError, match=f"{hook} in a way that cannot be linearised"):
        check_whole(bridge, weights, record)


def test_rotary_positions_that_depend_on_the_prompt_are_refused(path):
    lm = load_hugging_face_model(path, device="cpu")
    if lm._model.config.model_type == "gpt2":
        return
    lm._model.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4}
    with pytest.raises(UsageError, match="rotary positions of type 'dynamic', whose frequencies"):
        model_weights(lm)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("OLMo", {"clip_qkv": 0.5}, r"clips its queries, keys and values at 0.5, .* clip_qkv null"),
        ("Qwen 2", {"layer_types": ["full_attention", "chunked_attention"]}, "Block 1 of this"),
    ],
)
def test_what_is_not_linear_is_refused(name, changes, message):
    model = random_model(name)
    for key, value in changes.items():
        setattr(model.config, key, value)
    with pytest.raises(UsageError, match=message):
        READERS[model.config.model_type](
            Parameters(model, torch.float64, torch.device("cpu")), model.config
        )


def test_a_prompt_longer_than_the_context_is_refused(bridge):
    with pytest.raises(UsageError, match="has 40 tokens, more than the 32"):
        record_forward(bridge, model_weights(bridge), torch.ones(1, 40, dtype=torch.long))
