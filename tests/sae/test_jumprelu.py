"""What arXiv 2407.14435 says of JumpReLU SAEs."""

import pytest
import torch

from saelab.sae.context import LossContext
from saelab.sae.jump import Heaviside, Jump
from saelab.sae.jumprelu import JumpReLUConfig
from saelab.testing.steps import loss_of, train_step

WIDTH = 0.2


def build(**options):
    config = JumpReLUConfig.model_validate({"d_sae": 24, "k": 3} | options)
    return config.build(8, torch.Generator().manual_seed(0))


def rows(n=32, seed=1):
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_with_thresholds_zero_it_is_a_relu_autoencoder():
    sae = build()
    sae.threshold.zero_()
    expected = (rows() @ sae.W_enc + sae.b_enc).relu() @ sae.W_dec + sae.b_dec
    torch.testing.assert_close(sae.reconstruct(rows()), expected)


def test_a_latent_is_on_only_strictly_above_its_threshold():
    a = torch.tensor([[0.5, 0.5, 0.5]])
    threshold = torch.tensor([0.4, 0.5, 0.6])
    assert Jump.apply(a, threshold, WIDTH).tolist() == [[0.5, 0.0, 0.0]]
    assert Heaviside.apply(a, threshold, WIDTH).tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize(("function", "loss"), [(Jump, torch.square), (Heaviside, lambda z: 3 * z)])
def test_the_estimate_is_the_derivative_of_the_expected_loss(function, loss):
    """Over dense samples the window's estimate equals a numeric derivative of the mean."""
    a = torch.linspace(-2, 3, 200_001, dtype=torch.float64)[:, None]
    threshold = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    loss(function.apply(a, threshold, 0.02)).mean().backward()
    means = [
        loss(function.apply(a, torch.tensor([t], dtype=torch.float64), 0.02)).mean()
        for t in (0.7 - 1e-3, 0.7 + 1e-3)
    ]
    torch.testing.assert_close(
        threshold.grad[0], (means[1] - means[0]) / 2e-3, rtol=0.02, atol=1e-4
    )


def test_entries_outside_the_window_leave_the_threshold_alone():
    threshold = torch.tensor([0.5], requires_grad=True)
    a = torch.tensor([[0.5 + WIDTH], [0.5 - WIDTH], [3.0]])
    (Jump.apply(a, threshold, WIDTH).sum() + Heaviside.apply(a, threshold, WIDTH).sum()).backward()
    assert threshold.grad.tolist() == [0.0]


def test_the_indicator_gives_the_pre_activations_no_gradient():
    a = rows().requires_grad_()
    Heaviside.apply(a, torch.full((8,), 0.1), WIDTH).sum().backward()
    assert a.grad is None or not a.grad.any()


@pytest.mark.parametrize(
    ("k", "penalty"), [(3, lambda l0: (l0 / 3 - 1) ** 2), (None, lambda l0: l0)]
)
def test_the_penalty_is_on_l0_itself_and_rises_from_zero(k, penalty):
    sae = build(k=k, l0_coefficient=0.5, l0_warmup=0.5)
    terms = {
        step: loss_of(sae, rows(), LossContext(8.0, step=step, n_steps=100)) for step in (0, 25, 75)
    }
    l0 = terms[0].codes.mean_l0()
    assert float(terms[0].parts["l0_penalty"]) == pytest.approx(penalty(l0), rel=1e-5)
    totals = [float(terms[step].total.detach()) for step in (0, 25, 75)]
    assert totals[1] - totals[0] == pytest.approx(0.25 * penalty(l0), rel=1e-3)
    assert totals[2] - totals[0] == pytest.approx(0.5 * penalty(l0), rel=1e-3)


def test_training_reaches_the_target_l0():
    sae = build(l0_coefficient=1.0)
    optimizer = torch.optim.Adam(sae.parameters(), lr=5e-3)
    for step in range(600):
        x = rows(128, seed=step)
        train_step(sae, optimizer, x, LossContext(8.0, step=step, n_steps=600))
    assert abs(sae.encode(rows(2000, seed=10_000)).mean_l0() - 3) < 0.5


def test_thresholds_never_become_negative():
    sae = build(k=24, l0_coefficient=10.0, bandwidth=1.0)
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.5)
    for step in range(5):
        train_step(sae, optimizer, rows(), LossContext(8.0, step=step + 50, n_steps=60))
    assert float(sae.threshold.detach().min()) >= 0.0
    assert sae.threshold.dtype == torch.float32


def test_the_window_reaches_down_to_where_four_times_the_target_would_be_active():
    sae, x = build(), 7 * rows(500)
    sae.initialise(x)
    assert sae.encode(x).mean_l0() == pytest.approx(3, rel=0.01)
    with torch.no_grad():
        sae.threshold.sub_(sae.bandwidth / 2)
    assert sae.encode(x).mean_l0() == pytest.approx(12, rel=0.01)


@pytest.mark.parametrize(("bandwidth", "k", "expected"), [(0.2, 3, 0.2), (None, None, 0.5)])
def test_the_window_is_as_wide_as_asked_and_half_without_a_target(bandwidth, k, expected):
    sae = build(bandwidth=bandwidth, k=k)
    sae.initialise(7 * rows(500))
    assert sae.bandwidth == expected


def test_aux_k_gives_a_silent_latent_a_gradient_that_jumprelu_alone_does_not():
    dead = torch.arange(24) == 5
    for coefficient, moves in ((1 / 32, True), (0.0, False)):
        sae = build(aux_coefficient=coefficient)
        with torch.no_grad():
            sae.threshold[5] = 100.0
        terms = loss_of(sae, rows(), LossContext(8.0, dead))
        terms.total.backward()
        assert bool(sae.W_enc.grad[:, 5].any()) is moves
        assert bool(sae.W_dec.grad[5].any()) is moves
        assert ("aux_k" in terms.parts) is moves
