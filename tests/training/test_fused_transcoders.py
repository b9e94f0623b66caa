"""Transcoders' fused step against autograd in float64, under the interpreter."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_config
from kernels.triton_device import DEVICE
from rest import rest
from training.test_fused import BATCH, FORMS, SMALL, K, gradients

from saelab.bench.machine import Rates, StepShape
from saelab.bench.step import step_config, time_step
from saelab.config import UsageError
from saelab.kernels.triton.codes import jump
from saelab.sae.context import LossContext
from saelab.sae.jumprelu import JumpReLUConfig
from saelab.sae.transcoder import make_transcoder
from saelab.training import fused_graphs
from saelab.training.config import TrainConfig
from saelab.training.fused import FusedOptions, FusedStep
from saelab.training.fused_graphs import TwoGraphs
from saelab.training.fused_steps import FusedSteps
from saelab.training.loop import train
from saelab.training.objectives import Local
from saelab.training.run import Run
from saelab.training.run_paths import AVERAGED
from saelab.training.source import Source
from saelab.training.state import TrainingState
from saelab.training.step_parts import as_read
from saelab.training.steps import AutogradSteps
from saelab.types import ActivationBatch

# Rows of two chunks of columns and of three; the last chunk of the wider rows has no narrow column.
NARROW, WIDE, D_SAE, V = 20, 36, 6, 9.0
CONTEXT = LossContext(V, step=3, n_steps=20)
JUMP: dict[str, tuple[Any, dict[str, Any]]] = {
    "jumprelu": (JumpReLUConfig, {"bandwidth": 0.8, "l0_coefficient": 0.5})
}


@pytest.fixture(scope="module", autouse=True)
def _small_rooms():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_graphs, "LEAST_ROOM", 32)
        patch.setattr(jump, "LEAST_ROOM", 32)
        yield


def build(form, d_in, d_out, *, skip=True, seed=0, **options: Any):
    cls, given = {**FORMS, **JUMP}[form]
    config = cls(**({"d_sae": D_SAE, "k": K, "aux_coefficient": 0} | given | options))
    generator = torch.Generator().manual_seed(seed)
    sae = make_transcoder(config.build(d_in, generator), d_out, skip=skip, generator=generator)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            if name not in ("W_enc", "W_dec", "threshold"):
                parameter.normal_(std=0.1, generator=generator)
            if name == "threshold":
                parameter[8:] = 50.0
    return sae.to(DEVICE)


def batches(d_in, d_out, n=2):
    generator = torch.Generator().manual_seed(3)
    x, y = (torch.randn(n, BATCH, d, generator=generator).to(DEVICE) for d in (d_in, d_out))
    return [ActivationBatch(a, b, gradients(b)) for a, b in zip(x, y, strict=True)]


def fused(sae, given, precision=torch.float32, **options):
    step = FusedStep(sae, FusedOptions(BATCH, V, precision, launch=SMALL, **options))
    figures = []
    for batch in given:
        step.set_lr(1e-2)
        step.prepare(CONTEXT)
        step(batch.x, 1.0, batch.grad, batch.target)
        figures.append({name: float(value) for name, (_, value) in step.penalties.items()})
        figures[-1]["error"] = float(step.mse_sum)
    step.write_back()
    return step, figures


def by_autograd(sae, given, **options: Any):
    values: dict[str, Any] = {"clip_norm": None, "dead_after": 10**9} | options
    config = TrainConfig(
        sae=sae.config, activations=Path(), site="", n_tokens=0, batch_size=BATCH, **values
    )
    steps, figures = AutogradSteps(config, sae.double(), torch.device(DEVICE)), []
    for batch in given:
        x, y, grad = (t.double() for t in (batch.x, batch.target, batch.grad))
        done = steps.optimizer_step(
            ActivationBatch(x, y, grad), Local(), CONTEXT, lr=1e-2, scale=1.0
        )
        figures.append({name: float(part) for name, part in done.terms.parts.items()})
        figures[-1]["error"] = float(done.terms.mse_sum)
    return steps, figures


@pytest.mark.parametrize("scale", [1.0, 0.37])
def test_rows_in_the_steps_own_dtype_move_weights_to_the_bits_of_float32_copies(scale):
    """Live rows come in the model's dtype; they were copied to float32 for every SAE."""
    config = TrainConfig(
        sae=FORMS["topk"][0](d_sae=D_SAE, k=K, aux_coefficient=0), activations=Path(),
        site="", n_tokens=0, batch_size=BATCH, precision="bfloat16",
    )  # fmt: skip
    ended = []
    for copied in (False, True):
        steps = FusedSteps(config, build("topk", WIDE, NARROW), torch.device(DEVICE), V)
        for batch in batches(WIDE, NARROW):
            given = ActivationBatch(batch.x.bfloat16(), batch.wanted.bfloat16())
            if copied:
                given = ActivationBatch(given.x.float(), given.wanted.float() * scale)
            else:
                given = as_read(given, steps.dtype, scale)
                assert given.x.dtype == torch.bfloat16
            steps.optimizer_step(given, Local(), CONTEXT, lr=1e-2, scale=scale)
        ended.append(steps.tensors())
    torch.testing.assert_close(*ended, rtol=0, atol=0, equal_nan=True)


def test_rows_in_another_dtype_are_read_in_float32():
    batch = ActivationBatch(torch.full((1, 2), 0.1).half(), torch.full((1, 3), 0.3).half())
    found = as_read(batch, torch.bfloat16, 0.5)
    assert torch.equal(found.x, batch.x.float())
    assert torch.equal(found.wanted, batch.wanted.float() * 0.5)


def check_equal(form, d_in, d_out, *, skip=True, options=None, **training):
    """Two steps end at the same parameters; returns the fused step."""
    ours, theirs = (build(form, d_in, d_out, skip=skip, **(options or {})) for _ in range(2))
    given = batches(d_in, d_out)
    start = {name: value.clone() for name, value in ours.state_dict().items()}
    steps, expected = by_autograd(theirs, given, **training)
    adam = {k: training.pop(k) for k in ("weight_decay",) if k in training}
    if adam:
        training["adam"] = replace(FusedOptions(1, V).adam, **adam)
    step, figures = fused(ours, given, **training)
    for one, other in zip(figures, expected, strict=True):
        # A part that is off is zero here and missing there.
        assert one == pytest.approx({name: other.get(name, 0.0) for name in one}, rel=1e-5)
    assert torch.equal(step.since_fired, steps.dead.since_fired)
    for name, parameter in theirs.named_parameters():
        mine = ours.get_parameter(name)
        torch.testing.assert_close(
            mine.double(), parameter, atol=3e-6, rtol=1e-4, msg=lambda m, n=name: n + m
        )
        assert not torch.equal(mine, start[name]), name
    return step


@pytest.mark.parametrize(
    ("form", "d_in", "d_out"),
    [
        ("topk", NARROW, WIDE),
        ("uncentred-abs-topk", NARROW, WIDE),
        ("hierarchical-budgets", WIDE, NARROW),
        ("jumprelu", NARROW, WIDE),
        *rest(
            ("topk", WIDE, NARROW),
            ("topk", 32, 32),
            ("multi-topk", NARROW, WIDE),
            ("batch-topk", NARROW, WIDE),
            ("gradient-topk", NARROW, WIDE),
            ("matryoshka", NARROW, WIDE),
        ),
    ],
)
def test_steps_equal_those_of_autograd_in_float64(form, d_in, d_out):
    check_equal(form, d_in, d_out)


def test_without_a_skip_connection_only_the_encoder_moves_its_bias():
    check_equal("topk", NARROW, WIDE, skip=False)


@pytest.mark.parametrize("form", ["jumprelu", *rest("topk")])
def test_aux_k_clipping_and_decay_are_those_of_autograd(form):
    """Twenty latents of which few fire; they are dead from the second batch on."""
    options = {"d_sae": 20, "aux_coefficient": 0.5, "aux_k": 3}
    step = check_equal(
        form, NARROW, WIDE, options=options, dead_after=BATCH, clip_norm=0.05, weight_decay=0.3
    )
    assert step.graphs.aux.capacity == 20
    assert float(step.penalties["aux_k"][1]) > 0
    assert float(step.gradient_norm) > 0.05


def test_dense_products_for_many_entries_give_the_same(monkeypatch):
    monkeypatch.setattr(fused_graphs, "LEAST_ROOM", 1)
    step = check_equal("jumprelu", NARROW, WIDE, clip_norm=0.05)
    assert isinstance(step.graphs, TwoGraphs)
    assert step.graphs.dense is not None


def test_a_copied_state_continues_to_the_same_bits():
    x, y = batches(NARROW, WIDE)
    first, rest = (
        FusedStep(build("topk", NARROW, WIDE, seed=seed), FusedOptions(BATCH, V, launch=SMALL))
        for seed in (0, 1)
    )
    first.set_lr(1e-2)
    first(x.x, target=x.target)
    rest.load(first.tensors())
    for step in (first, rest):
        step(y.x, target=y.target)
    for name, tensor in first.tensors().items():
        torch.testing.assert_close(
            rest.tensors()[name], tensor, rtol=0, atol=0, equal_nan=True, msg=name
        )
    assert {"b_in.m", "W_skip", "W_skip.copy"} <= set(first.tensors())


def test_targets_of_another_width_are_refused():
    step = FusedStep(build("topk", NARROW, WIDE), FusedOptions(BATCH, V))
    with pytest.raises(UsageError, match="target has shape"):
        step(torch.zeros(BATCH, NARROW, device=DEVICE), target=torch.zeros(BATCH, NARROW))


@pytest.mark.skipif(DEVICE == "cuda", reason="trains on a CPU, by the interpreter")
@pytest.mark.parametrize(
    ("sae", "more"),
    [
        (
            {"variant": "topk", "k": 2, "aux_k": 2},
            {"target_site": "blocks.1.mlp.hook_post", "skip": True},
        ),
        pytest.param(
            {"variant": "k-sparse", "k": 2, "k_start": 4}, {}, marks=pytest.mark.exhaustive
        ),
        ({"variant": "matching-pursuit", "k": 2, "aux_k": 2}, {}),
    ],
)
def test_a_run_by_kernels_resumes_to_the_same_bits_and_equals_one_by_autograd(
    sae, more, mlp_store, tmp_path
):
    config = small_config(
        mlp_store, sae={"d_sae": 12, **sae}, batch_size=4, site="blocks.1.ln2.hook_out", ema=0.5,
        n_tokens=12, dead_after=4, clip_norm=0.1, log_every=1, step="fused", **more,
    )  # fmt: skip
    runs = [
        train(config.model_copy(update={"step": step}), out=tmp_path / step, device="cpu")
        for step in ("fused", "autograd")
    ]
    source = Source([config], torch.device("cpu"))
    first, second = (TrainingState.start(config, source, source.start_rows()) for _ in range(2))
    stream, objective = source.stream(), Local()
    first.train_on(next(stream), objective)
    first.save(tmp_path, stream.state_dict())
    place = second.restore(tmp_path)
    assert place is not None
    stream = source.stream()
    stream.load_state_dict(place)
    while not second.finished:
        second.train_on(next(stream), objective)
    resumed = second.finish(source.calibration_rows()).state_dict()
    weights = [run.load_sae().state_dict() for run in runs]
    for name, tensor in weights[0].items():
        assert torch.equal(resumed[name], tensor), name
    averages = [Run(run.path / AVERAGED).load_sae().state_dict() for run in runs]
    for ours, theirs in (weights, averages):
        for name, value in theirs.items():
            torch.testing.assert_close(
                ours[name], value, atol=3e-5, rtol=1e-3, msg=lambda m, n=name: n + m
            )
    assert [run.provenance()["step"] for run in runs] == ["fused", "autograd"]
    ours, theirs = (run.metrics() for run in runs)
    for a, b in zip(ours, theirs, strict=True):
        for name in set(b) - {"tokens_per_second"}:
            assert a[name] == pytest.approx(b[name], rel=2e-3), name


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoders_step_is_timed_by_its_name(skip):
    rates, shape = Rates(matmul=1e9, copy=1e9), StepShape(16, 4, 2, 2)
    config = step_config("topk", shape, precision="float32", transcoder=True, skip=skip)
    config = config.model_copy(update={"step": "fused"})
    result = time_step(config, shape, rates, torch.device(DEVICE), steps=1)
    assert (result.way, result.variant) == ("fused", f"topk {'skip ' * skip}transcoder")
    assert min(result.stages.values()) > 0
