"""SparseCodes: one meaning of firing, and a dense form that agrees with it."""

import pytest
import torch

from saelab.types import SparseCodes


@pytest.fixture
def codes() -> SparseCodes:
    values = torch.tensor([[2.0, 0.0], [-1.0, 3.0]])
    return SparseCodes(values, torch.tensor([[1, 0], [1, 2]]), d_sae=4)


def test_dense_writes_every_value_at_its_latent(codes):
    expected = [[0.0, 2.0, 0.0, 0.0], [0.0, -1.0, 3.0, 0.0]]
    assert codes.dense().tolist() == expected


def test_a_selected_zero_does_not_fire_and_a_negative_value_does(codes):
    assert codes.active.tolist() == [[True, False], [True, True]]
    assert codes.firing_counts().tolist() == [0, 2, 1, 0]


def test_mean_l0_is_the_dense_nonzeros_per_row(codes):
    assert codes.mean_l0() == float((codes.dense() != 0).sum()) / 2


def test_values_and_indices_of_different_shape_are_refused():
    with pytest.raises(Exception, match="k"):
        SparseCodes(torch.zeros(2, 3), torch.zeros(2, 4, dtype=torch.int64), 8)
