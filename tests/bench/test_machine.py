"""What the benchmark of a training step counts."""

import pytest
import torch

from saelab.bench.machine import DenseStep, Rates, StepShape, measure_rates


def test_the_floor_is_the_product_and_the_bytes_at_the_machines_rates():
    # By hand: 412.3 GFLOP; 1.074 GB of pre-activations; 1.309 GB of weights and moments.
    rates, half = Rates(matmul=798e12, copy=3e12), StepShape(768, 32768, 32, moments="bfloat16")
    floor = rates.floor(StepShape(768, 32768, 32))
    assert floor == pytest.approx(0.5167e-3 + 0.3579e-3 + 0.4362e-3, rel=1e-3)
    # 8 bytes less for each of 50.3 million weights.
    assert floor - rates.floor(half) == pytest.approx(0.1342e-3, rel=1e-3)


def test_rates_are_measured_on_any_device():
    rates = measure_rates(torch.device("cpu"), size=64, rounds=2)
    assert rates.matmul > 0
    assert rates.copy > 0


def test_the_dense_rival_learns_and_keeps_unit_atoms():
    step = DenseStep(
        StepShape(8, 16, 2, 32), torch.device("cpu"), total_variance=1.0, compiled=False
    )
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    before = float(step._plain_loss(x).detach())
    for _ in range(200):
        step(x)
    assert float(step._plain_loss(x).detach()) < 0.95 * before
    norms = step.W_dec.detach().norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(16))
