"""JumpReLU's fused step against the step of autograd, under the interpreter or on a GPU."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.triton_device import DEVICE
from rest import rest

from saelab.bench.machine import Rates, StepShape
from saelab.bench.step import step_config, time_step
from saelab.kernels.triton.codes import jump
from saelab.kernels.triton.step.rules import Launch
from saelab.sae.context import LossContext
from saelab.sae.jumprelu import JumpReLUConfig
from saelab.training import fused_graphs
from saelab.training.config import TrainConfig
from saelab.training.fused import FusedOptions, FusedStep
from saelab.training.fused_graphs import TwoGraphs
from saelab.training.objectives import Local
from saelab.training.steps import AutogradSteps
from saelab.types import ActivationBatch

# Latents that do not fill the last group, and some with more entries than a slice.
D_IN, D_SAE, BATCH, V, STEPS = 12, 10, 4, 5.0, 12
SMALL = Launch(columns=16, pairs=4, latents=4, slice=2)
CONTEXT = LossContext(V, step=0, n_steps=STEPS)


@pytest.fixture(scope="module", autouse=True)
def _small_rooms():
    """Few entries would else have room for thousands, each of which the interpreter visits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_graphs, "LEAST_ROOM", 32)
        patch.setattr(jump, "LEAST_ROOM", 32)
        yield


def build(seed=0, d_in=D_IN, **options):
    """About the window's width of the thresholds are nearer to zero than half of it."""
    values = {"d_sae": D_SAE, "k": 3, "bandwidth": 0.5, "l0_warmup": 0.2, **options}
    sae = JumpReLUConfig.model_validate(values).build(d_in, torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        sae.b_enc.normal_(std=0.1, generator=generator)
        sae.b_dec.normal_(std=0.1, generator=generator)
        sae.threshold.uniform_(0, 1.5, generator=generator)
    return sae.to(DEVICE)


def batches(n=STEPS, seed=3, d_in=D_IN):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, BATCH, d_in, generator=generator).to(DEVICE)


def graphs_of(step) -> TwoGraphs:
    assert isinstance(step.graphs, TwoGraphs)
    return step.graphs


def fused(sae, xs, lr=1e-2, start=0, step=None, **options):
    """Steps from number `start` on; the errors, penalties and L0 of each."""
    given_: dict[str, Any] = {"precision": torch.float32, "launch": SMALL, **options}
    step = FusedStep(sae, FusedOptions(BATCH, V, **given_)) if step is None else step
    figures = []
    for number, x in enumerate(xs, start=start):
        step.set_lr(lr)
        step.prepare(replace(CONTEXT, step=number))
        step(x)
        weight, penalty = step.penalties["l0_penalty"]
        figures.append([float(step.mse_sum), weight, float(penalty), step.codes.mean_l0()])
    step.write_back()
    return step, torch.tensor(figures)


def by_autograd(sae, xs, lr=1e-2, **options: Any):
    values: dict[str, Any] = {"clip_norm": None, "dead_after": 10_000_000} | options
    config = TrainConfig(
        sae=sae.config, activations=Path(), site="", n_tokens=0, batch_size=BATCH, **values
    )
    steps, figures = AutogradSteps(config, sae, torch.device(DEVICE)), []
    for number, x in enumerate(xs):
        context = replace(CONTEXT, step=number)
        done = steps.optimizer_step(ActivationBatch(x), Local(), context, lr=lr, scale=1.0)
        terms, weight = done.terms, sae.penalty_weight(context)
        penalty = float(terms.parts["l0_penalty"])
        figures.append([float(terms.mse_sum), weight, penalty, terms.codes.mean_l0()])
    return steps, torch.tensor(figures)


def assert_same_training(ours, theirs, xs, clip_norm=None, lr=1e-2, **options):
    step, figures = fused(ours, xs, lr, clip_norm=clip_norm, **options)
    steps, expected = by_autograd(theirs, xs, lr, clip_norm=clip_norm, **options)
    torch.testing.assert_close(figures, expected, atol=1e-5, rtol=1e-3)
    assert torch.equal(step.since_fired, steps.dead.since_fired)
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(
            ours.get_parameter(name), parameter, atol=2e-5, rtol=1e-3, msg=lambda m, n=name: n + m
        )
    return step, figures


@settings(max_examples=5, deadline=None)
@given(
    k=st.sampled_from([None, 1.5, 8]),
    bandwidth=st.sampled_from([0.1, 0.5, 2.0]),
    l0_coefficient=st.sampled_from([0.0, 0.3, 5.0]),
    subtract_b_dec=st.booleans(),
    clip_norm=st.sampled_from([None, 0.05]),
    seed=st.integers(0, 5),
)
def test_a_step_is_that_of_autograd_and_adam(clip_norm, seed, **options):
    # Two chunks of columns, the second not full.
    ours, theirs = (build(seed, d_in=20, **options) for _ in range(2))
    assert_same_training(ours, theirs, batches(1, seed, d_in=20), clip_norm)


@pytest.mark.slow
def test_twelve_steps_are_those_of_autograd_and_l0_moves_towards_its_target():
    ours, theirs = (build(k=0.5, l0_coefficient=5.0) for _ in range(2))
    start = ours.threshold.detach().clone()
    # The same rows again and again, so that L0 changes by training alone.
    xs = batches(1).expand(STEPS, BATCH, D_IN)
    _, figures = assert_same_training(ours, theirs, xs, clip_norm=1.0, lr=2e-2)
    moved = (ours.threshold.detach() - start).abs()
    assert float(moved.max()) > 0.1
    # A threshold may not fall below zero, where autograd's training stops it as well.
    assert float(ours.threshold.detach().min()) >= 0
    assert figures[0, 3] - figures[-1, 3] > 1


@pytest.mark.parametrize(
    ("centres", "clip_norm"),
    [(False, None), (True, 0.05), *rest((False, 0.05), (True, None))],
)
def test_too_many_entries_for_the_kernels_go_by_dense_products(monkeypatch, clip_norm, centres):
    monkeypatch.setattr(fused_graphs, "LEAST_ROOM", 8)
    ours, theirs = (build(subtract_b_dec=centres, k=None) for _ in range(2))
    step, _ = assert_same_training(ours, theirs, batches(2), clip_norm)
    assert graphs_of(step).n_entries > 8
    assert graphs_of(step).dense is not None
    assert step.stages() == {}


def test_a_run_may_change_between_dense_products_and_kernels(monkeypatch):
    monkeypatch.setattr(fused_graphs, "LEAST_ROOM", 4)
    ours, theirs = build(), build()
    xs = batches(2)
    xs[1] *= 0.2  # Fewer entries are in the window or above it.
    numbers = [graphs_of(fused(build(), [x])[0]).n_entries for x in xs]
    assert numbers[1] < numbers[0] - 1
    monkeypatch.setattr(fused_graphs, "DENSE_SHARE", (numbers[0] - 1) / (BATCH * D_SAE))
    step, _ = fused(build(), xs[:1])
    assert graphs_of(step).dense is not None
    step, _ = assert_same_training(ours, theirs, xs)
    assert graphs_of(step).dense is None


@pytest.mark.parametrize(
    ("dense", "centres", "clip_norm"),
    [
        (False, True, 0.05),
        (True, False, None),
        *rest((False, False, None), (False, False, 0.05), (False, True, None)),
        *rest((True, False, 0.05), (True, True, None), (True, True, 0.05)),
    ],
)
def test_silent_latents_are_revived_as_by_autograd(monkeypatch, dense, centres, clip_norm):
    if dense:
        monkeypatch.setattr(fused_graphs, "LEAST_ROOM", 0)
        monkeypatch.setattr(fused_graphs, "DENSE_SHARE", 0)
    ours, theirs = (build(subtract_b_dec=centres, aux_k=2, aux_coefficient=1) for _ in range(2))
    for sae in (ours, theirs):
        with torch.no_grad():
            sae.threshold[:4] = 50.0
    before = ours.W_enc.detach().clone()
    xs = batches(3)
    xs[2] = xs[0]  # The codes of the first step are still in the room of the third.
    step, _ = assert_same_training(ours, theirs, xs, clip_norm, dead_after=BATCH)
    assert (graphs_of(step).dense is not None) is dense
    assert float(step.penalties["aux_k"][1]) > 0
    assert bool((ours.W_enc.detach() != before)[:, :4].any())


def test_room_is_kept_for_a_few_sizes_and_is_neither_too_small_nor_far_too_large():
    step = FusedStep(build(), FusedOptions(BATCH, V, launch=SMALL))
    sizes = [
        len(graphs_of(step).room(n).codes.values) for n in (40, 50, 64, 65, 500, 3000, 100, 30_000)
    ]
    assert sizes == [64, 64, 64, 96, 576, 3584, 128, 36_864]
    assert list(graphs_of(step).rooms) == [3584, 128, 36_864]
    graphs_of(step).room(2000)
    assert list(graphs_of(step).rooms) == [128, 36_864, 3584]


def test_what_is_off_in_the_window_moves_its_threshold_and_no_weights():
    """One latent at 0.45 under a threshold of 0.5, where Jump and Step have slopes for it."""
    sae = build(d_in=2, d_sae=1, k=None, l0_coefficient=0.0)
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0], [0.0]]))
        sae.W_dec.copy_(torch.tensor([[1.0, 0.0]]))
        for value, number in ((sae.b_enc, 0.0), (sae.b_dec, 0.0), (sae.threshold, 0.5)):
            value.fill_(number)
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    x = torch.tensor([[0.45, 0.0]] * BATCH, device=DEVICE)
    step, figures = fused(sae, [x])
    assert graphs_of(step).n_entries == BATCH
    assert figures[0, 3] == 0
    for name in ("W_enc", "b_enc", "W_dec"):
        torch.testing.assert_close(sae.state_dict()[name], before[name], rtol=0, atol=0)
    # The residual points away from the atom, so firing would help: the threshold falls.
    assert float(sae.threshold.detach()) < 0.5


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_copied_state_continues_to_the_same_bits(precision):
    xs = batches(2)
    whole, _ = fused(build(), xs, precision=precision)
    first, _ = fused(build(), xs[:1], precision=precision)
    second = FusedStep(build(1), FusedOptions(BATCH, V, precision, launch=SMALL))
    second.load(first.tensors())
    fused(None, xs[1:], start=1, step=second)
    for name, tensor in whole.tensors().items():
        torch.testing.assert_close(
            second.tensors()[name], tensor, rtol=0, atol=0, equal_nan=True, msg=name
        )


def test_bfloat16_products_stay_near_float32():
    sae = build()
    _, figures = fused(sae, batches(2), lr=1e-3, precision=torch.bfloat16)
    _, exact = by_autograd(build(), batches(2), lr=1e-3)
    torch.testing.assert_close(figures[:, 0], exact[:, 0], rtol=2e-2, atol=0)
    assert sae.threshold.dtype == torch.float32


def test_the_time_of_a_step_comes_with_its_parts():
    rates, shape = Rates(matmul=1e9, copy=1e9), StepShape(16, 8, 2, 4)
    config = step_config("jumprelu", shape, precision="float32")
    config = config.model_copy(update={"step": "fused"})
    result = time_step(config, shape, rates, torch.device(DEVICE), steps=1)
    assert result.way == "fused"
    assert set(result.stages) == {"encode", "select", "sort", "decode", "update"}
