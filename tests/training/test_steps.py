"""Both ways to do a step make the same SAE; which one is taken is said and kept to."""

from functools import partial

import pytest
import torch
from conftest import small_config
from kernels.triton_device import DEVICE

from saelab.config import UsageError
from saelab.sae.context import LossContext
from saelab.training.fused_steps import FusedSteps
from saelab.training.loop import train, train_many
from saelab.training.metrics import Interval, IntervalMetrics
from saelab.training.objectives import Local, make_objective
from saelab.training.source import Source
from saelab.training.state import TrainingState
from saelab.training.steps import AutogradSteps
from saelab.types import ActivationBatch, LossTerms, SparseCodes

pytestmark = pytest.mark.skipif(DEVICE == "cuda", reason="the interpreter's; see test_fused.py")
CHANGES = {
    "sae": {"variant": "topk", "d_sae": 12, "k": 2, "aux_k": 2},
    "batch_size": 4,
    "n_tokens": 12,
    "dead_after": 4,
    "clip_norm": 0.1,
    "log_every": 1,
}


@pytest.fixture(scope="module")
def both(small_store, tmp_path_factory):

    out = tmp_path_factory.mktemp("steps")
    return {
        step: train(small_config(small_store, **CHANGES, step=step), out=out / step, device="cpu")
        for step in ("fused", "autograd")
    }


def test_runs_by_kernels_equal_those_by_autograd(both):
    fused, plain = (both[step].load_sae().state_dict() for step in ("fused", "autograd"))
    for name, value in plain.items():
        torch.testing.assert_close(
            fused[name], value, atol=3e-5, rtol=1e-3, msg=lambda m, n=name: n + m
        )
    ours, theirs = (both[step].metrics() for step in ("fused", "autograd"))
    for a, b in zip(ours, theirs, strict=True):
        for name in set(b) - {"tokens_per_second"}:
            assert a[name] == pytest.approx(b[name], rel=2e-3), name
    assert {step: run.provenance()["step"] for step, run in both.items()} == {
        "fused": "fused",
        "autograd": "autograd",
    }


def test_both_ways_report_multi_topks_two_errors(small_store):
    sae = {**CHANGES["sae"], "multi_k_coefficient": 0.125, "aux_coefficient": 0}
    config = small_config(small_store, **{**CHANGES, "sae": sae})
    batch = ActivationBatch(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))
    found = []
    for make in (AutogradSteps, partial(FusedSteps, total_variance=8.0)):
        built = config.sae.build(8, torch.Generator().manual_seed(1))
        steps = make(config, built, torch.device("cpu"))
        context = LossContext(total_variance=8.0)
        found.append(steps.optimizer_step(batch, Local(), context, lr=0.0, scale=1.0).terms)
    theirs, ours = found
    torch.testing.assert_close(ours.total, theirs.total.detach())
    torch.testing.assert_close(ours.mse_sum, theirs.mse_sum.detach())
    torch.testing.assert_close(ours.parts["multi_k"], theirs.parts["multi_k"].detach())
    assert torch.equal(ours.codes.dense(), theirs.codes.dense().detach())


def test_a_resumed_run_by_kernels_equals_one_that_never_stopped(both, small_store, tmp_path):

    config = small_config(small_store, **CHANGES, step="fused")
    source = Source([config], torch.device("cpu"))
    first, second = (TrainingState.start(config, source, source.start_rows()) for _ in range(2))
    stream = source.stream()
    first.train_on(next(stream), make_objective(source))
    first.save(tmp_path, stream.state_dict())
    place = second.restore(tmp_path)
    assert place is not None
    stream = source.stream()
    stream.load_state_dict(place)
    while not second.finished:
        second.train_on(next(stream), make_objective(source))
    sae = second.finish(source.calibration_rows())
    for name, value in both["fused"].load_sae().state_dict().items():
        assert torch.equal(sae.state_dict()[name], value), name


def test_a_checkpoint_of_the_other_way_is_refused(small_store, tmp_path):

    config = small_config(small_store, **CHANGES, step="autograd")
    source = Source([config], torch.device("cpu"))
    state = TrainingState.start(config, source, source.start_rows())
    state.save(tmp_path, source.stream().state_dict())
    other = config.model_copy(update={"step": "fused"})
    with pytest.raises(UsageError, match="trained by the autograd step"):
        TrainingState.start(other, source, source.start_rows()).restore(tmp_path)


def test_of_several_runs_one_that_needs_kernels_is_refused_before_any_begins(small_store, tmp_path):
    plain = small_config(small_store)
    configs = {tmp_path / "plain": plain}
    configs[tmp_path / "rounded"] = plain.model_copy(update={"moments": "bfloat16"})
    with pytest.raises(UsageError, match="Run rounded: --moments bfloat16 needs the fused step"):
        train_many(configs, device="cpu")
    assert not any(tmp_path.glob("*/*"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, "needs a CUDA device"),
        ({"sae": {"variant": "topk", "d_sae": 600, "k": 520}}, "k=520"),
        ({"ties": "float32", "precision": "bfloat16", "step": "auto"}, "--ties float32"),
        (
            {"moments": "bfloat16", "step": "auto"},
            "--moments bfloat16 needs the fused step, and there is none: it needs a CUDA device",
        ),
    ],
)
def test_asking_for_kernels_where_there_are_none_is_refused(
    small_store, tmp_path, monkeypatch, changes, named
):

    if "sae" not in changes:
        monkeypatch.delenv("TRITON_INTERPRET")
    config = small_config(small_store, **{**CHANGES, "step": "fused", **changes})
    with pytest.raises(UsageError, match=named):
        train(config, out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_the_figures_sums_stay_where_a_graph_adds_to_them():
    metrics, x = IntervalMetrics(torch.ones(3)), torch.zeros(2, 3)
    codes = SparseCodes(torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.int64), 4)
    terms = LossTerms(torch.tensor(2.0), torch.tensor(1.5), codes, {"aux_k": torch.tensor(0.5)})
    for _ in range(2):
        metrics.add(x, terms)
        metrics.count(len(x), terms.parts)
    found = metrics.summary()
    assert (found["loss"], found["fvu"], found["l0"], found["aux_k"]) == (2.0, 0.5, 2.0, 0.5)
    sums, aux_k = [metrics.error, metrics.variance, metrics.active, metrics.loss], metrics.parts
    metrics.reset()
    assert "aux_k" not in metrics.parts
    metrics.load(Interval(rows=4, steps=2, error=1, variance=2, active=3, loss=4, parts=found))
    assert [float(value) for value in sums] == [1, 2, 3, 4]
    assert float(aux_k["aux_k"]) == 0.5
