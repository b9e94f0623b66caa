"""Gemma Scope's parameters are a JumpReLU SAE that does not subtract b_dec."""

import numpy as np
import pytest
import torch
from sae.interop.cases import (
    D_SAE,
    ROWS,
    above,
    assert_means,
    pre_activations,
    reconstruction,
    refusal,
    weights,
    write_json,
)
from safetensors.torch import save_file

from saelab.sae.interop.gemma_scope import read_gemma_scope
from saelab.sae.interop.hints import Hints


def lowered(tensors):
    return {name.replace("W_", "w_"): tensor for name, tensor in tensors.items()}


def params(path, tensors):
    path.mkdir(parents=True, exist_ok=True)
    if any(name.startswith("w_") for name in tensors) and "scaling_factor" not in tensors:
        save_file(tensors, path / "params.safetensors")
    else:
        np.savez(path / "params.npz", **{name: t.numpy() for name, t in tensors.items()})
    return path


@pytest.mark.parametrize(
    "spell",
    [
        dict,
        lambda tensors: lowered(tensors) | {"scaling_factor": torch.ones(D_SAE)},
        lowered,
    ],
    ids=["npz", "lower-case npz", "safetensors"],
)
def test_parameters_are_read_under_every_spelling(spell, tmp_path):
    tensors = weights()
    path = params(tmp_path, spell(tensors))
    threshold = tensors["threshold"].double().numpy()
    codes = above(pre_activations(tensors, centred=False), threshold)
    for place in (path, next(path.iterdir())):
        sae = read_gemma_scope(place)
        assert_means(sae, codes, reconstruction(codes, tensors))
        assert (sae.model, sae.hook) == (None, None)


@pytest.mark.parametrize(
    ("path", "model", "hook"),
    [
        ("gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71", "google/gemma-2-2b",
         "blocks.20.hook_resid_post"),
        ("models--google--gemma-scope-9b-it-mlp/snapshots/0/layer_3/width_16k/x",
         "google/gemma-2-9b-it", "blocks.3.hook_mlp_out"),
        ("gemma-scope-27b-pt-att/layer_0/x", "google/gemma-2-27b", "blocks.0.attn.hook_z"),
        ("gemma-scope-2b-pt-res/embedding/width_4k/average_l0_44", None, None),
        ("mine/layer_3", None, None),
    ],
)  # fmt: skip
def test_the_published_path_tells_model_and_hook(path, model, hook, tmp_path):
    sae = read_gemma_scope(params(tmp_path / path, weights()))
    assert (sae.model, sae.hook) == (model, hook)


@pytest.mark.parametrize(
    ("module", "hook"),
    [
        ("model.layers.12.output", "blocks.12.hook_resid_post"),
        ("model.layers.7.self_attn.o_proj.input", "blocks.7.attn.hook_z"),
        ("model.layers.7.post_feedforward_layernorm.output", "blocks.7.hook_mlp_out"),
        ("model.layers.7.something.else", None),
        (None, None),
    ],
)
def test_the_configuration_of_gemma_3_tells_model_and_hook(module, hook, tmp_path):
    params(tmp_path, lowered(weights()))
    config = {
        "architecture": "jump_relu",
        "model_name": "google/gemma-3-1b-pt",
        "hf_hook_point_in": module,
        "hf_hook_point_out": module,
    }
    write_json(tmp_path / "config.json", config)
    sae = read_gemma_scope(tmp_path)
    assert (sae.model, sae.hook, sae.transcoder) == ("google/gemma-3-1b-pt", hook, False)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architecture": "transformer"}, "'transformer', not 'jump_relu'"),
        ({"model_name": ["x"]}, "model_name is ['x']"),
        ({"model_name": "../../x"}, "no name of a language model"),
    ],
)
def test_a_configuration_of_something_else_is_refused(config, words, tmp_path):
    params(tmp_path, lowered(weights()))
    write_json(tmp_path / "config.json", config)
    assert words in refusal(lambda: read_gemma_scope(tmp_path))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scaling_factor": torch.full((D_SAE,), 2.0)}, "scaling factor other than 1"),
        ({"extra": torch.zeros(2)}, "holds 'extra'"),
        ({"threshold": torch.zeros(3)}, "threshold has 3 entries"),
        ({"W_dec": torch.zeros(6, 10)}, "W_dec has shape [6, 10]"),
        ({"b_enc": torch.full((D_SAE,), torch.nan)}, "b_enc holds NaN"),
        ({"affine_skip_connection": torch.zeros(6, 5)}, "W_skip has shape [6, 5]"),
        ({"W_dec": torch.zeros(10, 2, 6)}, "writes several sites (W_dec has shape [10, 2, 6])"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(changes, words, tmp_path):
    params(tmp_path, weights() | changes)
    assert words in refusal(lambda: read_gemma_scope(tmp_path))


def test_a_file_without_thresholds_is_refused(tmp_path):
    tensors = weights()
    del tensors["threshold"]
    params(tmp_path, tensors)
    assert "lacks threshold" in refusal(lambda: read_gemma_scope(tmp_path))


@pytest.mark.parametrize(
    ("path", "hooks"),
    [
        ("gemma-scope-2b-pt-transcoders/layer_1",
         ("blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out")),
        ("models--google--gemma-scope-2b-pt-transcoders/snapshots/0/layer_1",
         ("blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out")),
        ("gemma-scope-2-270m-pt/transcoder_all/layer_5_width_16k_l0_small", (None, None)),
    ],
)  # fmt: skip
def test_where_the_file_is_silent_the_published_folder_tells_a_transcoder(path, hooks, tmp_path):
    path = params(tmp_path / path, weights())
    sae = read_gemma_scope(path)
    assert (sae.transcoder, sae.hook, sae.hook_out) == (True, *hooks)
    assert not read_gemma_scope(path, Hints(transcoder=False)).transcoder


def test_a_skip_connection_is_not_transposed(tmp_path):
    tensors = lowered(weights())
    skip = torch.randn(6, 6, generator=torch.Generator().manual_seed(2))
    params(tmp_path, tensors | {"affine_skip_connection": skip})
    config = {"hf_hook_point_in": "model.layers.3.pre_feedforward_layernorm.output",
              "hf_hook_point_out": "model.layers.3.post_feedforward_layernorm.output"}  # fmt: skip
    write_json(tmp_path / "config.json", config)
    sae, stored = read_gemma_scope(tmp_path), weights()
    codes = above(pre_activations(stored, centred=False), stored["threshold"].double().numpy())
    x_hat = reconstruction(codes, stored) + ROWS.double().numpy() @ skip.double().numpy()
    assert_means(sae, codes, x_hat)
    assert (sae.hook, sae.hook_out) == ("blocks.3.mlp.hook_in", "blocks.3.hook_mlp_out")


@pytest.mark.parametrize(
    "own", ["transcoder-vs-sae", "gemma-scope-2b-pt-transcoders", "clt", "layer_3/my_transcoders"]
)
def test_ones_own_folders_say_nothing_about_a_published_sae(own, tmp_path):
    published = tmp_path / own / "gemma-scope-2b-pt-res" / "layer_20" / "width_16k"
    sae = read_gemma_scope(params(published, weights()))
    assert sae.hook == "blocks.20.hook_resid_post"


def test_a_link_from_a_hub_cache_is_read_by_its_own_path(tmp_path):
    blobs = params(tmp_path / "blobs", weights())
    place = tmp_path / "models--google--gemma-scope-2b-pt-res" / "snapshots" / "0" / "layer_7"
    place.mkdir(parents=True)
    (place / "params.npz").symlink_to(blobs / "params.npz")
    assert read_gemma_scope(place).hook == "blocks.7.hook_resid_post"


def test_a_missing_file_is_named(tmp_path):
    assert "params.safetensors does not exist" in refusal(lambda: read_gemma_scope(tmp_path))
    assert "gone.npz does not exist" in refusal(lambda: read_gemma_scope(tmp_path / "gone.npz"))
