"""The neutral form says what it means, and refuses what contradicts itself."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from sae.interop.cases import (
    D_SAE,
    ROWS,
    above,
    assert_means,
    first,
    pre_activations,
    reconstruction,
    refusal,
    weights,
)

from saelab.sae.interop.foreign import ForeignSAE


def make(**changes):
    values: dict[str, Any] = {**weights(), "subtract_b_dec": True, "source": "test"}
    return ForeignSAE(**(values | changes))


def by_hand(**changes):
    """One input, three latents: the pre-activations are x + 1, 2x and -3x."""
    values: dict[str, Any] = {
        "W_enc": torch.tensor([[1.0, 2.0, -3.0]]),
        "b_enc": torch.tensor([1.0, 0.0, 0.0]),
        "W_dec": torch.tensor([[1.0], [10.0], [100.0]]),
        "b_dec": torch.tensor([0.5]),
        "subtract_b_dec": False,
        "source": "test",
    }
    return ForeignSAE(**(values | changes))


def test_a_threshold_must_be_exceeded():
    sae = by_hand(threshold=torch.tensor([3.0, 3.9, 0.0]))
    assert sae.encode_dense(torch.tensor([[2.0]])).tolist() == [[0.0, 4.0, 0.0]]
    assert sae.reconstruct(torch.tensor([[2.0]])).tolist() == [[40.5]]


def test_k_latents_are_kept_and_rectified():
    assert by_hand(k=2).encode_dense(torch.tensor([[-2.0]])).tolist() == [[0.0, 0.0, 6.0]]
    assert by_hand(k=2).encode_dense(torch.tensor([[2.0]])).tolist() == [[3.0, 4.0, 0.0]]


def test_signed_codes_are_ranked_by_magnitude_and_keep_their_signs():
    sae = by_hand(k=2, signed=True)
    assert sae.encode_dense(torch.tensor([[2.0]])).tolist() == [[0.0, 4.0, -6.0]]


def test_the_encoder_subtracts_b_dec_where_it_should():
    sae = by_hand(k=3, subtract_b_dec=True)
    assert sae.encode_dense(torch.tensor([[2.0]])).tolist() == [[2.5, 3.0, 0.0]]


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("kind", ["threshold", "k", "signed"])
def test_dense_codes_are_those_of_the_formulas(kind, centred):
    tensors = weights()
    pre_acts = pre_activations(tensors, centred=centred)
    if kind == "threshold":
        sae, codes = make(), above(pre_acts, tensors["threshold"].double().numpy())
    else:
        signed = kind == "signed"
        sae = make(threshold=None, k=3, signed=signed)
        codes = first(pre_acts, 3, signed=signed)
    assert_means(replace(sae, subtract_b_dec=centred), codes, reconstruction(codes, tensors))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("centred", [True, False])
def test_scaling_codes_leaves_reconstructions_alone(seed, centred):
    sae = make(**weights(seed), subtract_b_dec=centred)
    factor = torch.linspace(0.5, 4, D_SAE)
    scaled = sae.with_codes_times(factor)
    assert torch.allclose(scaled.encode_dense(ROWS), sae.encode_dense(ROWS) * factor, atol=1e-3)
    assert torch.allclose(scaled.reconstruct(ROWS), sae.reconstruct(ROWS), atol=1e-3)


def test_with_norms_in_codes_atoms_are_unit_and_an_atom_of_zero_stays_finite():
    W_dec = weights()["W_dec"].clone()
    W_dec[3] = 0
    norms = make(W_dec=W_dec).with_norms_in_codes().W_dec.norm(dim=1)
    assert torch.allclose(norms, torch.tensor([float(j != 3) for j in range(D_SAE)]))


@pytest.mark.parametrize("scale", [0.05, 0.7, 20.0])
@pytest.mark.parametrize("centred", [True, False])
def test_folding_an_input_scale_gives_the_same_codes_in_the_models_scale(scale, centred):
    sae = make(subtract_b_dec=centred)
    folded = sae.for_inputs_times(scale)
    assert torch.allclose(
        folded.encode_dense(ROWS / scale), sae.encode_dense(ROWS), rtol=1e-3, atol=1e-3
    )
    assert torch.allclose(
        folded.reconstruct(ROWS / scale) * scale, sae.reconstruct(ROWS), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"W_enc": torch.zeros(6)}, "W_enc has shape [6]"),
        ({"W_enc": torch.zeros(0, 10)}, "at least 1"),
        ({"W_dec": torch.zeros(6, 10)}, "W_dec has shape [6, 10], but [10, 6] fits"),
        ({"b_enc": torch.zeros(6)}, "b_enc has shape [6]"),
        ({"b_dec": torch.zeros(10)}, "b_dec has shape [10]"),
        ({"threshold": torch.zeros(1)}, "threshold has shape [1]"),
        ({"b_enc": torch.zeros(10).double()}, "b_enc is torch.float64"),
        ({"b_enc": torch.full((10,), torch.nan)}, "b_enc holds NaN"),
        ({"threshold": torch.full((10,), torch.inf)}, "threshold holds NaN or infinite"),
        ({"threshold": torch.full((10,), -0.5)}, "a threshold is -0.5"),
        ({"threshold": None}, "none of k, threshold, gate and steps"),
        ({"k": 3}, "k and threshold of k, threshold, gate and steps"),
        ({"threshold": None, "k": 11}, "k=11 is not within 1 and d_sae=10"),
        ({"threshold": None, "k": 0}, "k=0 is not"),
        ({"signed": True}, "signed codes are selected by k"),
        ({"batch_k": 10.5}, "a mean k of 10.5"),
        ({"batch_k": 0}, "a mean k of 0"),
        ({"prefixes": ()}, "prefixes []"),
        ({"prefixes": (2, 2, 10)}, "do not increase"),
        ({"prefixes": (0, 10)}, "do not increase"),
        ({"prefixes": (2, 9)}, "to d_sae=10"),
        ({"prefixes": tuple(range(100_000))}, "..."),
        ({"hook": "../../etc/passwd"}, "no name of a hook"),
        ({"hook": "blocks.0/hook"}, "no name of a hook"),
        ({"hook": ""}, "no name of a hook"),
        ({"hook": "x" * 300}, "no name of a hook"),
        ({"model": "a/../../b"}, "no name of a language model"),
        ({"model": "\x1b[2Jgpt2"}, "no name of a language model"),
        ({"model": "x" * 300}, "no name of a language model"),
    ],
)
def test_contradictions_are_refused(changes, words):
    assert words in refusal(lambda: make(**changes))


@pytest.mark.parametrize("hook", ["blocks.3.attn.hook_z", "hook_embed", "model.layers.3.mlp"])
def test_hooks_and_models_as_tools_name_them_are_accepted(hook):
    assert make(hook=hook, model="google/gemma-2-2b").hook == hook
