"""Merged codes against the steps they come from; coherence against the whole Gram matrix."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pursuit.pursuit_cases import Recorder, dense, orthonormal, problem, shapes

from saelab.config import UsageError
from saelab.pursuit import coherence as coherence_module
from saelab.pursuit.coherence import babel, coherence
from saelab.pursuit.matching_pursuit import Pursuit, merged

# Merged codes


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


# Coherence


@given(
    seed=st.integers(0, 10**6),
    d_in=st.integers(1, 6),
    d_sae=st.integers(2, 12),
    chunk=st.integers(1, 1000),
)
def test_babel_is_the_largest_sum_of_cosines_whatever_the_chunks(seed, d_in, d_sae, chunk):
    atoms = problem(seed, 1, d_in, d_sae)[1]
    cosines = (atoms @ atoms.T).abs().fill_diagonal_(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coherence_module, "BABEL_CHUNK_BYTES", chunk)
        found = [babel(atoms, q) for q in range(d_sae)]
    sums = cosines.sort(dim=1, descending=True).values.cumsum(1).amax(0)
    torch.testing.assert_close(found, [0.0, *sums[:-1].tolist()])
    assert coherence(atoms) == pytest.approx(found[1])
    assert all(a <= b + 1e-12 for a, b in pairwise(found))
    assert all(mu <= q * found[1] + 1e-12 for q, mu in enumerate(found))


def test_orthonormal_atoms_have_no_coherence():
    atoms = orthonormal(0, 6)
    assert coherence(atoms) == pytest.approx(0, abs=1e-12)
    assert babel(atoms, 5) == pytest.approx(0, abs=1e-12)


def test_babel_does_not_depend_on_the_atoms_lengths():
    atoms = problem(1, 1, 4, 9)[1]
    assert babel(atoms * torch.arange(1, 10)[:, None], 3) == pytest.approx(babel(atoms, 3))


def test_babel_never_holds_the_whole_gram_matrix(monkeypatch):
    monkeypatch.setattr(coherence_module, "BABEL_CHUNK_BYTES", 10 * 100 * 8)
    atoms = problem(2, 1, 4, 100)[1]
    with Recorder() as recorder:
        babel(atoms, 3)
    assert recorder.largest == 10 * 100


@pytest.mark.parametrize("q", [-1, 5])
def test_babel_refuses_more_atoms_than_there_are(q):
    with pytest.raises(UsageError, match=rf"q={q} is outside 0\.\.4"):
        babel(torch.eye(5), q)
