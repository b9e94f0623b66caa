"""Weights and records give back the running model, of either back end."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from analysis.circuits.cases import save_random

from saelab.config import UsageError
from saelab.lm.hf import load_hugging_face_model
from saelab.lm.internals import model_weights
from saelab.lm.load import load_language_model
from saelab.lm.record import record_forward


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


def test_unknown_architectures_are_refused_by_name(checkpoint, tmp_path):
    import transformers

    size: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    size |= {"num_attention_heads": 4, "vocab_size": 13, "max_position_embeddings": 32}
    config = transformers.CONFIG_MAPPING["gpt_neox"](**size)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path)
    lm = load_hugging_face_model(str(tmp_path), device="cpu")
    with pytest.raises(UsageError, match=r"gpt_neox, which cannot be linearised here; .* llama"):
        model_weights(lm)


def test_a_model_that_does_more_than_its_weights_say_is_refused(path, tokens):
    lm = load_hugging_face_model(path, device="cpu", dtype=torch.float64)
    weights = model_weights(lm)
    first = replace(weights.layers[0], b_V=weights.layers[0].b_V + 0.5)
    weights = replace(weights, layers=(first, *weights.layers[1:]))
    with pytest.raises(UsageError, match=r"blocks.0.attn.hook_z in a way .* off \(relative\)"):
        record_forward(lm, weights, tokens)


def test_scaled_attention_and_odd_rotary_positions_are_refused(tmp_path):
    import json

    path = save_random(tmp_path / "gpt2", "gpt2")
    file = tmp_path / "gpt2" / "config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"scale_attn_by_inverse_layer_idx": True})
    )
    with pytest.raises(UsageError, match="scales its attention scores"):
        model_weights(load_hugging_face_model(path, device="cpu"))
    path = save_random(tmp_path / "llama", "llama")
    lm = load_hugging_face_model(path, device="cpu")
    lm._model.config.rope_parameters = {"rope_type": "yarn", "rope_theta": 1e4}
    with pytest.raises(UsageError, match="rotary positions of type 'yarn'"):
        model_weights(lm)


def test_a_prompt_longer_than_the_context_is_refused(bridge):
    with pytest.raises(UsageError, match="has 40 tokens, more than the 32"):
        record_forward(bridge, model_weights(bridge), torch.ones(1, 40, dtype=torch.long))
