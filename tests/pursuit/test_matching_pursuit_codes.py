"""Merged codes against the steps they come from."""

import torch
from pursuit.pursuit_cases import Recorder, dense, shapes

from saelab.pursuit.matching_pursuit import Pursuit, merged


@shapes
def test_merged_codes_are_the_same_codes_with_unique_atoms(seed, batch, d_in, d_sae, n_steps):
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(d_sae, (batch, n_steps), generator=generator)
    values = torch.rand(batch, n_steps, generator=generator, dtype=torch.float64)
    values *= torch.rand(batch, n_steps, generator=generator) > 0.2
    pursuit = Pursuit(values.requires_grad_(), indices, values.new_zeros(batch, d_in))
    codes = merged(pursuit, d_sae)
    torch.testing.assert_close(codes.dense(), dense(pursuit, d_sae))
    assert codes.values.shape == codes.indices.shape == (batch, n_steps)
    assert (codes.active.sum(1) == (dense(pursuit, d_sae) > 0).sum(1)).all()
    weights = torch.randn(batch, d_sae, generator=generator, dtype=torch.float64)
    (grad,) = torch.autograd.grad((codes.dense() * weights).sum(), values)
    torch.testing.assert_close(grad, weights.gather(1, indices))


def test_merged_codes_stay_in_the_order_of_first_choice():
    indices = torch.tensor([[4, 2, 4, 0, 2]])
    pursuit = Pursuit(torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0]]), indices, torch.zeros(1, 1))
    codes = merged(pursuit, 6)
    assert codes.values.tolist() == [[8, 5, 0, 2, 0]]
    assert codes.indices.tolist() == indices.tolist()


def test_merging_allocates_nothing_larger_than_the_codes():
    indices = torch.randint(10**9, (8, 200), generator=torch.Generator().manual_seed(0))
    pursuit = Pursuit(torch.ones(8, 200), indices, torch.zeros(8, 1))
    with Recorder() as recorder:
        merged(pursuit, 10**9)
    assert recorder.largest == 8 * 200
