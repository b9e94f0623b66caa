"""Llama Scope's SAEs read scaled rows, and one threshold holds for codes times atoms' norms."""

import numpy as np
import pytest
import torch
from sae.interop.cases import (
    D_IN,
    D_SAE,
    above,
    assert_means,
    doubles,
    first,
    reconstruction,
    refusal,
    weights,
    write_json,
)
from sae.interop.cases import ROWS as X
from safetensors.torch import save_file

from saelab.sae.interop.convert import from_foreign
from saelab.sae.interop.detect import read_foreign

SITE = "blocks.1.hook_resid_post"
SETTINGS = {
    "d_model": D_IN,
    "act_fn": "jumprelu",
    "norm_activation": "dataset-wise",
    "jump_relu_threshold": 1.5,
    "sparsity_include_decoder_norm": True,
    "dataset_average_activation_norm": {"in": 5.0, "out": 5.0},
    "hook_point_in": SITE,
    "hook_point_out": SITE,
}


def stored():
    tensors = weights()
    return {
        "encoder.weight": tensors["W_enc"].T.contiguous(),
        "decoder.weight": tensors["W_dec"].T.contiguous(),
        "encoder.bias": tensors["b_enc"],
        "decoder.bias": tensors["b_dec"],
    }


def first_layout(path, **settings):
    (path / "checkpoints").mkdir(parents=True)
    save_file(stored(), path / "checkpoints" / "final.safetensors")
    write_json(path / "hyperparams.json", SETTINGS | settings)
    return path


def later_layout(path, logs, **settings):
    path.mkdir(exist_ok=True)
    save_file(stored() | {"log_jumprelu_threshold": logs}, path / "sae_weights.safetensors")
    write_json(path / "config.json", SETTINGS | settings)
    return path


def scaled(s_in):
    x, W_enc, b_enc = doubles(X, *(weights()[n] for n in ("W_enc", "b_enc")))
    return s_in * x @ W_enc + b_enc


NORMS = weights()["W_dec"].double().norm(dim=1).numpy()


@pytest.mark.parametrize("file", ["", "hyperparams.json", "checkpoints/final.safetensors"])
def test_the_threshold_is_in_units_of_the_rows(file, tmp_path):
    scale = D_IN**0.5 / 5
    a = scaled(scale)
    # What a latent writes to the plain rows has the norm a ||w|| / scale.
    codes = np.where(a * NORMS / scale > 1.5, a, 0)
    sae = read_foreign(first_layout(tmp_path) / file)
    assert_means(sae, codes, reconstruction(codes, weights()) / scale)
    assert sae.hook == SITE


def test_a_transcoder_scales_what_it_writes_by_another_constant(tmp_path):
    s_in, s_out = D_IN**0.5 / 5, D_IN**0.5 / 2
    norms, hooks = {"in": 5, "out": 2}, {"hook_point_out": "blocks.1.hook_mlp_out"}
    path = first_layout(tmp_path, dataset_average_activation_norm=norms, **hooks)
    a = scaled(s_in)
    codes = np.where(a * NORMS / s_out > 1.5, a, 0)
    sae = read_foreign(path)
    assert_means(sae, codes, reconstruction(codes, weights()) / s_out)
    assert (sae.hook, sae.hook_out) == (SITE, "blocks.1.hook_mlp_out")


@pytest.mark.parametrize(
    ("settings", "codes"),
    [
        ({"act_fn": "relu"}, lambda a: above(a, 0)),
        ({"act_fn": "topk", "top_k": 3, "sparsity_include_decoder_norm": False},
         lambda a: first(a, 3)),
        ({"act_fn": "topk", "top_k": 3}, lambda a: first(a * NORMS, 3)),
    ],
)  # fmt: skip
def test_other_activations(settings, codes, tmp_path):
    sae = read_foreign(first_layout(tmp_path, norm_activation="inference", **settings))
    by_norm = "top_k" in settings and len(settings) == 2
    want, tensors = codes(scaled(1)), weights()
    if by_norm:
        tensors["W_dec"] = tensors["W_dec"] / tensors["W_dec"].norm(dim=1)[:, None]
    assert_means(sae, want, reconstruction(want, tensors))


def test_rows_scaled_one_by_one_are_scaled_back(tmp_path):
    sae = read_foreign(first_layout(tmp_path, norm_activation="token-wise", act_fn="relu"))
    x, W_enc, b_enc = doubles(X, *(weights()[n] for n in ("W_enc", "b_enc")))
    size = np.linalg.norm(x, axis=1, keepdims=True) / D_IN**0.5
    codes = above(x / size @ W_enc + b_enc, 0)
    assert_means(sae, codes, reconstruction(codes, weights()) * size)


def test_later_files_have_a_threshold_for_each_latent_and_may_lack_the_scale(tmp_path):
    logs = torch.linspace(-1, 1, D_SAE)
    path = later_layout(tmp_path, logs, dataset_average_activation_norm=None)
    sae = read_foreign(path)
    assert "mean norm" in refusal(lambda: from_foreign(sae))
    a = scaled(D_IN**0.5 / 5)
    codes = np.where(a * NORMS > np.exp(logs.double().numpy()), np.maximum(a, 0), 0)
    x_hat = reconstruction(codes, weights()) * 5 / D_IN**0.5
    assert_means(sae.for_rows_of_norm(5.0), codes, x_hat)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"act_fn": "gelu"}, "act_fn is 'gelu', which has no counterpart"),
        ({"act_fn": "topk"}, "has no top_k"),
        ({"norm_activation": "batch-wise"}, "'batch-wise', which no constant"),
        ({"use_glu_encoder": True}, "gated linear encoder"),
        ({"sae_type": "clt"}, "sae_type is 'clt'"),
        ({"dataset_average_activation_norm": {"in": 0}}, "must be positive"),
        ({"jump_relu_threshold": -1}, "a threshold is"),
        ({"hook_point_out": "b", "dataset_average_activation_norm": {}}, "of both sites"),
    ],
)
def test_what_cannot_be_meant_is_refused(settings, words, tmp_path):
    assert words in refusal(lambda: read_foreign(first_layout(tmp_path, **settings)))
