"""What the weights say, against the whole matrices."""

import numpy as np
import pytest
import torch

from saelab.analysis.features import weights
from saelab.analysis.features.weights import (
    head_weights,
    logit_arrays,
    neighbour_arrays,
    weight_arrays,
)
from saelab.sae.decoder import dtype_of


@pytest.mark.parametrize("at_once", [1, 45, 2**20])
def test_neighbours_are_the_nearest_by_absolute_cosine_and_never_oneself(monkeypatch, at_once):
    monkeypatch.setattr(weights, "COSINES_AT_ONCE", at_once)
    W = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(W, dim=1)
    cosine = (unit @ unit.T).fill_diagonal_(0)
    arrays = neighbour_arrays(W, "encoder")
    expected = cosine.abs().sort(dim=1, descending=True).indices[:, :8]
    assert (arrays["encoder/latents"] == expected.numpy()).all()
    taken = cosine.gather(1, expected).numpy()
    assert np.allclose(arrays["encoder/cosine"], taken, atol=1e-6)


def test_latents_too_many_to_compare_have_no_neighbours_and_it_is_said(
    monkeypatch, small_run, random_lm, capsys
):
    sae = small_run.load_sae()
    whole = weight_arrays(sae, random_lm, "blocks.0.hook_resid_post")
    monkeypatch.setattr(weights, "MOST_COMPARED", sae.d_sae - 1)
    rest = weight_arrays(sae, random_lm, "blocks.0.hook_resid_post")
    assert {name.partition("/")[0] for name in whole.keys() - rest.keys()} == {
        "neighbours",
        "encoder",
    }
    assert all(np.array_equal(values, whole[name]) for name, values in rest.items())
    assert "no neighbours" in capsys.readouterr().err


def test_head_weights_by_hand():
    row = torch.tensor([[3.0, 4.0, 0.0, 0.0, 0.0, 15.0], [0.0] * 6])
    assert head_weights(row, 3).tolist() == [[0.25, 0.0, 0.75], [0.0] * 3]


def test_logit_tokens_are_the_extremes_of_the_direct_effect(small_run, random_lm):
    hook = "blocks.0.hook_resid_post"
    sae = small_run.load_sae()
    arrays = logit_arrays(sae.W_dec, dtype_of(sae), random_lm, hook)
    effects = random_lm.logit_effects(hook, sae.W_dec).detach().numpy()
    assert (arrays["logits/top_tokens"][:, 0] == effects.argmax(axis=1)).all()
    assert (arrays["logits/bottom_tokens"][:, 0] == effects.argmin(axis=1)).all()
    assert np.allclose(arrays["logits/top_values"], -np.sort(-effects)[:, :12], atol=1e-5)
    assert logit_arrays(sae.W_dec, dtype_of(sae), random_lm, "blocks.0.attn.hook_q") == {}
