"""SAELens directories mean what SAELens computes from them, and go back the same."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sae.interop.cases import (
    D_IN,
    D_SAE,
    PLAIN,
    ROWS,
    above,
    assert_means,
    doubles,
    first,
    pick,
    pre_activations,
    reconstruction,
    refusal,
    sae_lens_directory,
    weights,
    write_json,
)
from safetensors.torch import load_file, save_file

from saelab.sae.interop.foreign import ForeignSAE
from saelab.sae.interop.sae_lens import read_sae_lens
from saelab.sae.interop.sae_lens_write import write_sae_lens
from saelab.sae.interop.stated import TrainedOn


@pytest.mark.parametrize("centred", [True, False])
def test_standard_is_relu(centred, tmp_path):
    tensors = weights()
    path = sae_lens_directory(tmp_path, pick(tensors, *PLAIN), apply_b_dec_to_input=centred)
    codes = above(pre_activations(tensors, centred=centred), 0)
    sae = read_sae_lens(path)
    assert_means(sae, codes, reconstruction(codes, tensors))
    assert (sae.model, sae.hook) == ("gpt2", "blocks.8.hook_resid_pre")
    assert sae.source == "SAELens 6 standard"


def test_jumprelu_fires_above_its_thresholds(tmp_path):
    tensors = weights()
    path = sae_lens_directory(tmp_path, pick(tensors, *PLAIN, "threshold"), "jumprelu")
    threshold = tensors["threshold"].double().numpy()
    codes = above(pre_activations(tensors, centred=True), threshold)
    assert_means(read_sae_lens(path), codes, reconstruction(codes, tensors))


def test_a_threshold_below_zero_does_what_zero_does(tmp_path):
    tensors = weights() | {"threshold": torch.full((D_SAE,), -1.0)}
    path = sae_lens_directory(tmp_path, pick(tensors, *PLAIN, "threshold"), "jumprelu")
    codes = above(pre_activations(tensors, centred=True), 0)
    assert_means(read_sae_lens(path), codes, reconstruction(codes, tensors))


def test_old_checkpoints_hold_the_logarithm_of_the_threshold(tmp_path):
    tensors = weights()
    stored = pick(tensors, *PLAIN) | {"log_threshold": tensors["threshold"].log()}
    codes = above(pre_activations(tensors, centred=True), tensors["threshold"].double().numpy())
    sae = read_sae_lens(sae_lens_directory(tmp_path, stored, "jumprelu"))
    assert_means(sae, codes, reconstruction(codes, tensors))


@pytest.mark.parametrize("signed", [False, True])
def test_top_k_keeps_the_first_k(signed, tmp_path):
    tensors = weights()
    architecture = "abstopk" if signed else "topk"
    path = sae_lens_directory(tmp_path, pick(tensors, *PLAIN), architecture, k=3)
    codes = first(pre_activations(tensors, centred=True), 3, signed=signed)
    assert_means(read_sae_lens(path), codes, reconstruction(codes, tensors))


@pytest.mark.parametrize("signed", [False, True])
def test_codes_times_decoder_norms_choose_other_latents(signed, tmp_path):
    tensors = weights()
    architecture = "abstopk" if signed else "topk"
    path = sae_lens_directory(
        tmp_path, pick(tensors, *PLAIN), architecture, k=3, rescale_acts_by_decoder_norm=True
    )
    (W_dec,) = doubles(tensors["W_dec"])
    norms = np.linalg.norm(W_dec, axis=1)
    pre_acts = pre_activations(tensors, centred=True)
    codes = first(pre_acts * norms, 3, signed=signed)
    assert ((codes != 0) != (first(pre_acts, 3, signed=signed) != 0)).any()
    assert_means(read_sae_lens(path), codes, reconstruction(codes / norms, tensors))


def test_gated_multiplies_gate_and_magnitude(tmp_path):
    tensors = weights()
    extra = dict(
        zip(
            ("b_gate", "b_mag", "r_mag"),
            torch.randn(3, D_SAE, generator=torch.Generator().manual_seed(5)),
            strict=True,
        )
    )
    path = sae_lens_directory(tmp_path, pick(tensors, "W_enc", "W_dec", "b_dec") | extra, "gated")
    x, W, b_dec, gate, mag, r = doubles(
        ROWS, tensors["W_enc"], tensors["b_dec"], *(extra[n] for n in ("b_gate", "b_mag", "r_mag"))
    )
    u = (x - b_dec) @ W
    codes = np.where(u + gate > 0, np.maximum(u * np.exp(r) + mag, 0), 0.0)
    assert_means(read_sae_lens(path), codes, reconstruction(codes, tensors))


def test_batch_top_k_saved_for_inference_remembers_its_training(tmp_path):
    tensors = weights() | {"threshold": torch.full((D_SAE,), 1.25)}
    metadata = {
        "sae_lens_version": "6.54.12",
        "training_architecture": "matryoshka_batchtopk",
        "training_architecture_details": {"k": 2.5, "matryoshka_widths": [2, 5]},
    }
    path = sae_lens_directory(
        tmp_path, pick(tensors, *PLAIN, "threshold"), "jumprelu", metadata=metadata
    )
    codes = above(pre_activations(tensors, centred=True), 1.25)
    sae = read_sae_lens(path)
    assert_means(sae, codes, reconstruction(codes, tensors))
    assert (sae.prefixes, sae.batch_k, sae.k) == ((2, 5, D_SAE), 2.5, None)


@pytest.mark.parametrize(
    ("stated", "rescaled"),
    [
        ({"rescale_acts_by_decoder_norm": True}, True),
        ({"rescale_acts_by_decoder_norm": False}, False),
        ({}, True),
    ],
    ids=["rescaled", "as they are", "by default"],
)
@pytest.mark.parametrize("scale", [None, 0.4])
def test_a_batch_top_k_checkpoint_has_one_threshold_in_units_of_its_codes(
    stated, rescaled, scale, tmp_path
):
    tensors = weights()
    path = sae_lens_directory(
        tmp_path,
        pick(tensors, *PLAIN) | {"topk_threshold": torch.tensor(1.5, dtype=torch.float64)},
        "matryoshka_batchtopk",
        k=3,
        matryoshka_widths=[4, D_SAE],
        **stated,
        normalize_activations="none" if scale is None else "expected_average_only_in",
    )
    if scale is not None:
        write_json(path / "activation_scaler.json", {"scaling_factor": scale})
    s = scale or 1.0
    x, W_enc, W_dec, b_enc, b_dec = doubles(ROWS, *(tensors[n] for n in PLAIN))
    unit = np.linalg.norm(W_dec, axis=1) if rescaled else np.ones(D_SAE)
    in_training = above(((s * x - b_dec) @ W_enc + b_enc) * unit, 1.5)
    x_hat = ((in_training / unit) @ W_dec + b_dec) / s
    # SAELens divides the decoder by the scale before it multiplies codes by its norms.
    codes = in_training / s if rescaled else in_training
    sae = read_sae_lens(path)
    assert_means(sae, codes, x_hat)
    assert (sae.prefixes, sae.batch_k) == ((4, D_SAE), 3)


@pytest.mark.parametrize("centred", [True, False])
def test_a_checkpoints_input_scale_is_folded(centred, tmp_path):
    tensors = weights()
    path = sae_lens_directory(
        tmp_path,
        pick(tensors, *PLAIN),
        normalize_activations="expected_average_only_in",
        apply_b_dec_to_input=centred,
    )
    write_json(path / "activation_scaler.json", {"scaling_factor": 0.25, "has_whitening": False})
    x, W_enc, W_dec, b_enc, b_dec = doubles(ROWS, *(tensors[n] for n in PLAIN))
    codes = above((0.25 * x - (b_dec if centred else 0)) @ W_enc + b_enc, 0)
    assert_means(read_sae_lens(path), codes, (codes @ W_dec + b_dec) / 0.25)


@pytest.mark.parametrize("k_at", ["kwargs", "relu"])
def test_configurations_before_version_6_are_flat(k_at, tmp_path):
    tensors = weights()
    save_file(
        pick(tensors, *PLAIN) | {"scaling_factor": torch.ones(D_SAE)},
        tmp_path / "sae_weights.safetensors",
    )
    cfg = {
        "d_in": D_IN,
        "d_sae": D_SAE,
        "hook_point": "blocks.1.hook_mlp_out",
        "hook_point_head_index": None,
        "model_name": "pythia-70m",
        "normalize_activations": False,
        "sae_lens_version": "3.20.3",
    }
    pre_acts = pre_activations(tensors, centred=True)
    if k_at == "kwargs":
        cfg |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}}
        codes = first(pre_acts, 4)
    else:
        codes = above(pre_acts, 0)
    write_json(tmp_path / "cfg.json", cfg)
    sae = read_sae_lens(tmp_path)
    assert_means(sae, codes, reconstruction(codes, tensors))
    assert (sae.hook, sae.model) == ("blocks.1.hook_mlp_out", "pythia-70m")
    assert sae.source.startswith("SAELens 3 ")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_become_float32(dtype, tmp_path):
    stored = {name: tensor.to(dtype) for name, tensor in pick(weights(), *PLAIN).items()}
    sae = read_sae_lens(sae_lens_directory(tmp_path, stored))
    assert torch.equal(sae.W_enc, stored["W_enc"].float())
    assert sae.b_dec.dtype == torch.float32


FORMS: dict[str, dict[str, Any]] = {
    "relu": {"threshold": torch.zeros(D_SAE)},
    "jumprelu": {"hook": "blocks.1.attn.hook_z", "subtract_b_dec": False},
    "batch": {"batch_k": 2.5, "model": "google/gemma-2-2b"},
    "matryoshka": {"batch_k": 3, "prefixes": (2, 5, D_SAE)},
    "topk": {"threshold": None, "k": 3, "hook": "hook_embed"},
    "signed": {"threshold": None, "k": 3, "signed": True},
}


def form(name):
    values: dict[str, Any] = {**weights(), "subtract_b_dec": True, "source": "test"}
    return ForeignSAE(**(values | FORMS[name]))


@pytest.mark.parametrize("name", FORMS)
def test_what_is_written_is_read_back_the_same(name, tmp_path):
    sae = form(name)
    write_sae_lens(sae, tmp_path / "new" / "sae")
    read = read_sae_lens(tmp_path / "new" / "sae")
    for tensor in (*PLAIN, "threshold"):
        a, b = getattr(sae, tensor), getattr(read, tensor)
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)
    for field in ("k", "signed", "subtract_b_dec", "prefixes", "batch_k", "hook", "model"):
        assert getattr(sae, field) == getattr(read, field)


@pytest.mark.parametrize(
    ("name", "architecture", "tensors"),
    [
        ("relu", "standard", PLAIN),
        ("jumprelu", "jumprelu", (*PLAIN, "threshold")),
        ("topk", "topk", PLAIN),
        ("signed", "abstopk", PLAIN),
    ],
)
def test_the_architecture_follows_from_how_latents_are_selected(
    name, architecture, tensors, tmp_path
):
    write_sae_lens(form(name), tmp_path / "sae")
    cfg = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    assert cfg["architecture"] == architecture
    assert set(load_file(tmp_path / "sae" / "sae_weights.safetensors")) == set(tensors)
    assert cfg["normalize_activations"] == "none"
    assert cfg["reshape_activations"] == ("hook_z" if name == "jumprelu" else "none")
    # Below this version SAELens would look for the facts elsewhere.
    assert cfg["metadata"]["sae_lens_version"] >= "6.0.0"
    assert ("k" in cfg) == (name in ("topk", "signed"))
    assert not cfg.get("rescale_acts_by_decoder_norm", False)


def test_an_existing_sae_is_not_overwritten(tmp_path):
    write_sae_lens(form("relu"), tmp_path)
    before = (tmp_path / "cfg.json").read_bytes()
    assert "already holds an SAE" in refusal(lambda: write_sae_lens(form("topk"), tmp_path))
    assert (tmp_path / "cfg.json").read_bytes() == before
    (tmp_path / "file").touch()
    assert "is a file; name a directory" in refusal(
        lambda: write_sae_lens(form("relu"), tmp_path / "file")
    )


def metadata(hook, model="gpt2", **kwargs):
    return {"hook_name": hook, "model_name": model, "model_from_pretrained_kwargs": kwargs}


@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("hook", ["blocks.8.hook_resid_pre", "blocks.0.hook_mlp_out"])
def test_an_sae_of_centred_rows_centres_what_it_reads(hook, subtracts, tmp_path):
    tensors = weights()
    facts = metadata(hook, center_writing_weights=True)
    path = sae_lens_directory(
        tmp_path, pick(tensors, *PLAIN), apply_b_dec_to_input=subtracts, metadata=facts
    )
    x, W_enc, b_enc, b_dec = doubles(ROWS, *(tensors[n] for n in ("W_enc", "b_enc", "b_dec")))
    centred = x - x.mean(1, keepdims=True)
    codes = above((centred - b_dec if subtracts else centred) @ W_enc + b_enc, 0)
    sae = read_sae_lens(path)
    # The model's own computation never sees the mean, which the reconstruction gets back.
    assert_means(sae, codes, reconstruction(codes, tensors) + x.mean(1, keepdims=True))
    assert sae.row_norm == "centre"


@pytest.mark.parametrize(
    "facts",
    [
        metadata("blocks.8.hook_resid_pre", center_writing_weights=False),
        metadata("blocks.8.attn.hook_z", center_writing_weights=True),
        metadata("blocks.8.mlp.hook_post", center_writing_weights=True),
        metadata("blocks.8.hook_resid_pre", "meta-llama/Llama-3.1-8B", center_writing_weights=True),
        metadata("blocks.8.hook_resid_pre", fold_ln=True, fold_value_biases=True),
    ],
)
def test_processing_that_changes_nothing_at_the_hook_leaves_the_sae_alone(facts, tmp_path):
    tensors = weights()
    sae = read_sae_lens(sae_lens_directory(tmp_path, pick(tensors, *PLAIN), metadata=facts))
    assert torch.equal(sae.W_enc, tensors["W_enc"])
    assert not sae.note


def test_before_version_6_the_processing_stands_in_the_configuration_itself(tmp_path):
    path = sae_lens_directory(
        tmp_path,
        pick(weights(), *PLAIN),
        metadata=None,
        hook_name="blocks.8.hook_resid_pre",
        model_from_pretrained_kwargs={"center_writing_weights": True},
    )
    assert read_sae_lens(path).row_norm == "centre"


def test_heads_whose_value_biases_were_folded_away_are_refused(tmp_path):
    facts = metadata("blocks.8.attn.hook_z", fold_value_biases=True)
    path = sae_lens_directory(tmp_path, pick(weights(), *PLAIN), metadata=facts)
    assert "fold_value_biases, which changes what that hook holds" in refusal(
        lambda: read_sae_lens(path)
    )


def test_what_the_rows_were_is_written_for_whoever_loads_the_model(tmp_path):
    text = TrainedOn(True, 64, "owner/name", special_token_ids=(0, 2))
    write_sae_lens(replace(plain_topk(), text=text, model="gpt2"), tmp_path)
    facts = json.loads((tmp_path / "cfg.json").read_text())["metadata"]
    assert facts["prepend_bos"] is True
    assert (facts["context_size"], facts["dataset_path"]) == (64, "owner/name")
    assert facts["exclude_special_tokens"] == [0, 2]
    assert set(facts["model_from_pretrained_kwargs"].values()) == {False}
    assert read_sae_lens(tmp_path).row_norm is None


def plain_topk():
    return ForeignSAE(**pick(weights(), *PLAIN), k=3, subtract_b_dec=True, source="x")
