"""FVU is one ratio of sums, and does not depend on how rows were batched."""

import pytest
import torch

from saelab.evaluation.reconstruction import CENTRE_ROWS, Reconstruction, fvu_warning
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


def test_row_by_row_every_row_counts_alike(x):
    """One row of 60 is a hundred times as large: FVU is that of this row, the median is not."""
    x = x.clone()
    x[7] *= 100
    x_hat = x - 0.5
    x_hat[7] = x[7] * 0.5
    spread = (x.double() - x.double().mean(0)).pow(2).sum(1)
    own = (x.double() - x_hat.double()).pow(2).sum(1) / spread
    found = measure(x, x_hat, splits=5)
    assert found["fvu_row_mean"] == pytest.approx(float(own.mean()))
    assert found["fvu_row_median"] == pytest.approx(float(own.median()))
    assert found["top_share"] == pytest.approx(float(spread.max() / spread.sum()))
    warning = fvu_warning(found)
    assert warning is not None
    assert f"{found['fvu']:.4f}" in warning
    assert f"{found['fvu_row_median']:.4f}" in warning


def test_no_word_is_lost_where_rows_agree_or_are_not_known():
    x = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0))
    assert fvu_warning(measure(x, 0.9 * x)) is None
    assert fvu_warning({"fvu": 0.1}) is None


def test_the_centre_is_that_of_the_first_rows_however_they_are_batched():
    generator = torch.Generator().manual_seed(0)
    x = 3 + torch.randn(2 * CENTRE_ROWS, 3, generator=generator)
    x_hat = x + torch.randn(x.shape, generator=generator) / 3
    centre = x[:CENTRE_ROWS].double().mean(0)
    own = (x - x_hat).double().pow(2).sum(1) / (x.double() - centre).pow(2).sum(1)
    for splits in (1, 2, 3, 1000):
        found = measure(x, x_hat, splits)
        assert found["fvu_row_mean"] == pytest.approx(float(own.mean()), rel=1e-4)
