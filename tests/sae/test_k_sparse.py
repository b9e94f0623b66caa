"""What arXiv 1312.5663 says of k-sparse autoencoders."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from saelab.sae.context import LossContext
from saelab.sae.k_sparse import KSparseConfig
from saelab.testing.steps import loss_of


def build(**options):
    config = KSparseConfig.model_validate({"d_sae": 24, "k": 3} | options)
    return config.build(8, torch.Generator().manual_seed(0))


def rows(n=32):
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(1))


def test_with_k_equal_to_the_width_it_is_a_linear_tied_autoencoder():
    sae = build(k=24)
    with torch.no_grad():
        sae.b_enc.add_(0.5)
    linear = (rows() @ sae.W_enc + sae.b_enc) @ sae.W_enc.T + sae.b_dec
    torch.testing.assert_close(sae.reconstruct(rows()), linear)


def test_exactly_k_units_are_kept_negative_ones_too():
    sae = build(k=20)
    codes = sae.encode(rows())
    assert int(codes.active.sum(1).min()) == int(codes.active.sum(1).max()) == 20
    assert (codes.values < 0).any()


def test_atoms_that_no_row_keeps_have_no_gradient_from_either_use():
    sae = build()
    terms = loss_of(sae, rows(3), LossContext(1.0))
    terms.total.backward()
    never = terms.codes.firing_counts() == 0
    assert never.any()
    assert not sae.W_dec.grad[never].any()
    assert not sae.b_enc.grad[never].any()


@given(start=st.integers(3, 24), a=st.floats(0, 1), b=st.floats(0, 1))
def test_the_schedule_falls_and_reaches_k_at_half_time(start, a, b):
    sae = build(k_start=start)
    early, late = sorted((a, b))
    assert sae.k_at(early) >= sae.k_at(late)
    assert sae.k_at(0.0) == start
    assert sae.k_at(0.5) == sae.k_at(1.0) == 3


def test_training_keeps_what_the_schedule_says():
    sae = build(k_start=20)
    first, last = (
        loss_of(sae, rows(), LossContext(1.0, step=step, n_steps=10)).codes for step in (0, 9)
    )
    assert first.values.shape[1] == 20
    assert last.values.shape[1] == 3


def test_inference_may_keep_a_multiple_of_k():
    assert build(inference_multiplier=2.0).encode(rows()).values.shape[1] == 6
