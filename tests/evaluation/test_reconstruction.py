"""FVU is one ratio of sums, and does not depend on how rows were batched."""

import pytest
import torch

from saelab.evaluation.reconstruction import Reconstruction
from saelab.types import SparseCodes


def measure(x, x_hat, splits=1):
    result = Reconstruction(x.shape[1], 4, torch.device("cpu"))
    for part, hat in zip(x.tensor_split(splits), x_hat.tensor_split(splits), strict=True):
        values = torch.ones(len(part), 1)
        result.update(part, hat, SparseCodes(values, torch.zeros(len(part), 1).long(), 4))
    return result.results()


@pytest.fixture
def x():
    return 5 + torch.randn(60, 7, generator=torch.Generator().manual_seed(0))


def test_a_perfect_reconstruction_has_fvu_zero(x):
    assert measure(x, x)["fvu"] == 0


def test_predicting_the_mean_has_fvu_one(x):
    assert measure(x, x.mean(0).expand_as(x))["fvu"] == pytest.approx(1, abs=1e-6)


def test_batching_changes_nothing(x):
    x_hat = x + torch.randn_like(x)
    whole, split = measure(x, x_hat), measure(x, x_hat, splits=7)
    assert whole == pytest.approx(split)


def test_it_equals_the_definition_in_float64(x):
    x_hat = x + 0.3
    wide = x.double()
    expected = (wide - x_hat.double()).pow(2).sum() / (wide - wide.mean(0)).pow(2).sum()
    assert measure(x, x_hat)["fvu"] == pytest.approx(float(expected))


def test_l0_and_dead_latents_count_firings(x):
    figures = measure(x, x)
    assert (figures["l0"], figures["dead"], figures["dense"]) == (1.0, 3, 1)
