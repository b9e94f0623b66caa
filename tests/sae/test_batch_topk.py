"""What arXiv 2412.06410 says of BatchTopK, and of its threshold."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saelab.config import UsageError
from saelab.kernels.torch.threshold import EMA
from saelab.sae.batch_selection import density_threshold
from saelab.sae.batch_topk import BatchTopKConfig
from saelab.sae.context import LossContext
from saelab.testing.steps import loss_of
from saelab.types import SparseCodes


def build(**options):
    config = BatchTopKConfig.model_validate({"d_sae": 24, "k": 3} | options)
    return config.build(8, torch.Generator().manual_seed(0))


def rows(n=64, seed=1):
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))


def test_training_keeps_k_per_row_on_average_and_unequal_rows():
    codes = loss_of(build(), rows(), LossContext(1.0)).codes
    assert int(codes.active.sum()) == 3 * 64
    assert len(torch.bincount(codes.rows(), minlength=64).unique()) > 1


def test_k_may_be_a_fraction():
    assert loss_of(build(k=0.5), rows(), LossContext(1.0)).codes.mean_l0() == 0.5


def test_at_the_batchs_own_threshold_inference_equals_training():
    sae = build()
    sae.calibrate(rows())
    trained = loss_of(sae, rows(), LossContext(1.0)).codes
    assert torch.equal(sae.encode(rows()).dense(), trained.dense())


def test_without_a_threshold_encoding_is_refused_rather_than_leaking_between_rows():
    with pytest.raises(UsageError, match="no threshold yet"):
        build().encode(rows())


def test_the_running_threshold_starts_at_what_is_seen_first():
    sae = build()
    codes = loss_of(sae, rows(), LossContext(1.0)).codes
    sae.observe(codes)
    first = codes.values.detach()[codes.active].min()
    assert torch.equal(sae.threshold, first)
    sae.observe(SparseCodes(torch.tensor([[first + 1.0]]), torch.tensor([[0]]), 24))
    torch.testing.assert_close(sae.threshold, first + 1 - EMA)


def test_a_batch_in_which_nothing_fires_leaves_the_threshold_alone():
    sae = build()
    sae.calibrate(rows())
    before = sae.threshold.clone()
    sae.observe(SparseCodes(torch.zeros(4, 2), torch.zeros(4, 2, dtype=torch.int64), 24))
    assert torch.equal(sae.threshold, before)


def test_calibration_gives_mean_l0_k_where_the_mean_of_minima_does_not():
    sae = build()
    for seed in range(200):
        sae.observe(loss_of(sae, rows(16, seed), LossContext(1.0)).codes)
    fresh = rows(20_000, seed=999)
    off_by = abs(sae.encode(fresh).mean_l0() - 3)
    sae.calibrate(rows(20_000, seed=998))
    calibrated = abs(sae.encode(fresh).mean_l0() - 3)
    assert calibrated < 0.05 < off_by


@given(seed=st.integers(0, 10**6), n=st.integers(0, 60), chunk=st.integers(1, 12))
def test_the_density_threshold_lets_exactly_n_through_whatever_the_chunks(seed, n, chunk):
    sizes = torch.rand(12, 5, generator=torch.Generator().manual_seed(seed))
    threshold = density_threshold(sizes.split(chunk), n)
    assert int((sizes > threshold).sum()) == n


def test_a_density_beyond_all_positive_values_keeps_all_of_them():
    sizes = torch.tensor([[0.0, 0.0, 3.0]])
    assert float(density_threshold([sizes], 2)) == 0.0
    assert float(density_threshold([sizes], 5)) == 0.0
