"""A gated SAE and the JumpReLU SAE made of it have the same codes."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from sae.interop.cases import D_SAE, ROWS, doubles, weights

from saelab.sae.interop.gated import jumprelu_from_gated


@given(st.integers(0, 1000))
def test_the_jumprelu_form_fires_with_the_gated_values(seed):
    generator = torch.Generator().manual_seed(seed)
    r_mag, b_gate, b_mag = torch.randn(3, D_SAE, generator=generator)
    W_gate = weights(seed)["W_enc"]
    x, W, r, gate, mag = doubles(ROWS, W_gate, r_mag, b_gate, b_mag)
    expected = (x @ W + gate > 0) * np.maximum(x @ (W * np.exp(r)) + mag, 0)

    W_enc, b_enc, threshold = jumprelu_from_gated(W_gate, r_mag, b_gate, b_mag)
    W, bias, floor = doubles(W_enc, b_enc, threshold)
    pre_acts = x @ W + bias
    assert (floor >= 0).all()
    near = abs(pre_acts - floor) < 1e-5  # a tie at the threshold may fall either way
    assert np.allclose(np.where(pre_acts > floor, pre_acts, 0)[~near], expected[~near], atol=1e-4)
    assert near.mean() < 0.01
