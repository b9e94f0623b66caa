"""SAELens directories that are damaged, or contradict themselves, are refused with a sentence."""

import pytest
import torch
from sae.interop.cases import (
    PLAIN,
    pick,
    refusal,
    sae_lens_directory,
    weights,
    write_json,
)

from saelab.sae.interop.sae_lens import read_sae_lens

METADATA = {"sae_lens_version": "6.0.0"}
SCALED = {"normalize_activations": "expected_average_only_in"}


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        ({"architecture": "crosscoder"}, "'crosscoder' has no counterpart"),
        ({"architecture": "x" * 1000}, "has no counterpart"),
        ({"architecture": 3}, "architecture is 3"),
        ({"activation_fn": "tanh-relu"}, "'tanh-relu' has no counterpart"),
        ({"normalize_activations": "covariance_whitening"}, "'covariance_whitening', which has no"),
        ({"architecture": "topk"}, "has no k"),
        ({"architecture": "topk", "k": 11}, "k=11 is not within 1 and d_sae=10"),
        ({"architecture": "topk", "k": 2.5}, "k is 2.5"),
        ({"architecture": "topk", "k": "3"}, "k is '3'"),
        ({"architecture": "jumprelu"}, "lacks threshold"),
        ({"architecture": "gated"}, "lacks b_gate, b_mag, r_mag"),
        ({"d_sae": 10**12}, "d_sae is 1000000000000, but W_enc has 10"),
        ({"d_in": 7}, "d_in is 7, but W_enc has 6"),
        ({"d_in": [6]}, "d_in is [6]"),
        ({"metadata": "x"}, "metadata is 'x'"),
        ({"apply_b_dec_to_input": 1}, "apply_b_dec_to_input is 1"),
        ({"metadata": METADATA | {"hook_head_index": 0}}, "reads head 0 alone"),
        ({"metadata": METADATA | {"hook_name": "../../x"}}, "'../../x' is no name of a hook"),
        ({"metadata": METADATA | {"model_name": "../x"}}, "'../x' is no name of a language model"),
        ({"metadata": METADATA | {"hook_name": 3}}, "hook_name is 3"),
        (
            {"metadata": METADATA | {"training_architecture": "batchtopk",
             "training_architecture_details": {"matryoshka_widths": [4, 2]}}},
            "do not increase",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(cfg, words, tmp_path):
    sae_lens_directory(tmp_path, pick(weights(), *PLAIN), **cfg)
    assert words in refusal(lambda: read_sae_lens(tmp_path))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"W_skip": torch.zeros(6, 6)}, "holds 'W_skip'"),
        ({"scaling_factor": torch.full((10,), 2.0)}, "finetuning scaling factor other than 1"),
        ({"W_enc": torch.zeros(10)}, "2 axes"),
        ({"W_enc": torch.zeros(6, 10, dtype=torch.int8)}, "torch.int8"),
        ({"W_dec": torch.zeros(6, 10)}, "W_dec has shape [6, 10]"),
        ({"b_dec": torch.full((6,), torch.inf)}, "b_dec holds NaN or infinite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(changes, words, tmp_path):
    sae_lens_directory(tmp_path, pick(weights(), *PLAIN) | changes)
    assert words in refusal(lambda: read_sae_lens(tmp_path))


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        ({"stop_on_duplicate_support": True}, "stop_on_duplicate_support stops a row"),
        ({"stop_on_duplicate_support": None}, "stop_on_duplicate_support stops a row"),
        ({"residual_threshold": 0.5}, "residual_threshold=0.5 is compared after each step"),
        ({"residual_threshold": None}, "residual_threshold=0.01 is compared"),
        ({"max_iterations": 11}, "steps=11 is not within 1 and d_sae=10"),
        ({"max_iterations": 0}, "steps=0 is not within"),
        (SCALED, "scaled by a constant first"),
    ],
)  # fmt: skip
def test_settings_of_a_pursuit_that_no_steps_express_are_refused(cfg, words, tmp_path):
    as_here = {"stop_on_duplicate_support": False, "residual_threshold": 0.0, "max_iterations": 3}
    tensors, cfg = pick(weights(), "W_dec", "b_dec"), as_here | cfg
    sae_lens_directory(tmp_path, tensors, "matching_pursuit", **cfg)
    write_json(tmp_path / "activation_scaler.json", {"scaling_factor": 2.0})
    assert words in refusal(lambda: read_sae_lens(tmp_path))


@pytest.mark.parametrize("factor", [None, 0, -1, "1", [1]])
def test_a_scale_that_is_no_positive_number_is_refused(factor, tmp_path):
    sae_lens_directory(tmp_path, pick(weights(), *PLAIN), **SCALED)
    write_json(tmp_path / "activation_scaler.json", {"scaling_factor": factor})
    assert "scaling" in refusal(lambda: read_sae_lens(tmp_path))


def test_missing_files_are_named(tmp_path):
    assert "cfg.json does not exist" in refusal(lambda: read_sae_lens(tmp_path))
    write_json(tmp_path / "cfg.json", {})
    assert "sae_weights.safetensors does not exist" in refusal(lambda: read_sae_lens(tmp_path))
