"""Adam's moments in bfloat16: those of float32, rounded up or down, and nothing else."""

from functools import partial

import pytest
import torch
from conftest import small_config
from kernels.triton_device import DEVICE
from rest import rest
from training import test_fused, test_fused_jump, test_fused_transcoders
from training.test_fused import BATCH, SMALL, V, gradients

from saelab.config import UsageError
from saelab.formats.tensors import read_tensor_header
from saelab.kernels.triton.codes import jump
from saelab.kernels.triton.step.rules import AdamRules
from saelab.sae.context import LossContext
from saelab.sae.spread import keep_shard
from saelab.sae.topk import TopKConfig
from saelab.shard import LatentShard
from saelab.training import fused_graphs
from saelab.training.checkpoint import checkpoint_path
from saelab.training.fused import FusedOptions, FusedStep
from saelab.training.objectives import make_objective
from saelab.training.parts import read_parts, write_part
from saelab.training.source import Source
from saelab.training.spread import Spread
from saelab.training.state import TrainingState

HALF, N = torch.bfloat16, 3
AUX = {"d_sae": 20, "aux_coefficient": 0.5, "aux_k": 3}
REVIVED = {"clip_norm": 0.05, "dead_after": BATCH}
FORMS = {
    "topk": (partial(test_fused.build, "topk"), {}),
    "revived": (partial(test_fused.build, "topk", **AUX), REVIVED),
    "batch": (partial(test_fused.build, "batch-topk"), {"weight_decay": 3.0}),
    "one matrix": (partial(test_fused.build, "k-sparse"), {}),
    "pursuit": (partial(test_fused.build, "pursuit"), {"clip_norm": 0.05}),
    "jump": (partial(test_fused_jump.build, d_in=test_fused.D_IN), {"clip_norm": 0.05}),
    "transcoder": (partial(test_fused_transcoders.build, "topk", 20, 36), {"weight_decay": 3.0}),
    "nested": (partial(test_fused.build, "matryoshka", **AUX), REVIVED),
    "gradient": (partial(test_fused.build, "gradient-topk"), {}),
}
FIRST = ("revived", "pursuit", "jump", "transcoder")


@pytest.fixture(autouse=True)
def _small_rooms(monkeypatch):
    for module in (fused_graphs, jump):
        monkeypatch.setattr(module, "LEAST_ROOM", 32)


def made(sae, moments=HALF, seed=0, precision=torch.float32, weight_decay=0.0, **options):
    adam = AdamRules(weight_decay=weight_decay, moments=moments, seed=seed)
    return FusedStep(sae, FusedOptions(BATCH, V, precision, launch=SMALL, adam=adam, **options))


def step_on(step, number, lr=1e-2):
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(BATCH, test_fused.D_IN, generator=generator).to(DEVICE)
    target = torch.randn(step.target.shape, generator=generator).to(DEVICE)
    step.prepare(LossContext(V, step=number, n_steps=2 * N))
    step.set_lr(lr)
    step(x, grad=gradients(target), target=target)


@pytest.mark.parametrize("form", [*FIRST, *rest(*(form for form in FORMS if form not in FIRST))])
def test_a_step_is_that_of_float32_but_for_which_neighbour_the_rows_moments_become(form):
    build, options = FORMS[form]
    half, full = made(build(), **options), made(build(), torch.float32, **options)
    moved = []
    for number in range(N):
        full.load(half.tensors())
        step_on(half, number)
        step_on(full, number)
        expected, rounded = full.tensors(), set()
        for name, found in half.tensors().items():
            if found.dtype == HALF:
                rounded.add(name)
                moved.append(away_from_zero(found, expected[name]))
                continue
            torch.testing.assert_close(
                found, expected[name], atol=1e-7, rtol=1e-5, equal_nan=True, msg=name
            )
        rows = ("dec",) if half.rules.sae.has_one_matrix else ("dec", "enc")
        assert rounded == {f"{row}.{moment}" for row in rows for moment in "mv"}
    every = torch.cat(moved)
    assert float(every.abs().max()) < 1.001
    assert float(every.abs().mean()) > 0.1
    assert abs(float(every.mean())) < 2 / len(every) ** 0.5


def away_from_zero(found, exact):
    """How far rounding has moved numbers, in distances of bfloat16's neighbours there."""
    size = exact.double().abs().flatten()
    spacing = 2.0 ** (torch.frexp(size).exponent - 8).clamp_min(-133)
    return (found.double().abs().flatten() - size) / spacing


def after(seed, number=2):
    step = made(test_fused.build(), seed=seed)
    for n in range(number):
        step_on(step, n)
    return step.tensors()


def test_a_seed_gives_the_same_bits_and_another_one_others():
    first, second, other = (after(seed) for seed in (0, 0, 1))
    for name, found in first.items():
        assert torch.equal(found.nan_to_num(), second[name].nan_to_num()), name
        if found.dtype == HALF:
            assert not torch.equal(found, other[name]), name


def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(small_store, tmp_path):
    sae = {"variant": "topk", "d_sae": 12, "k": 2, "aux_k": 2}
    config = small_config(
        small_store,
        sae=sae,
        batch_size=4,
        n_tokens=12,
        dead_after=4,
        step="fused",
        moments="bfloat16",
    )
    source = Source([config], torch.device(DEVICE))
    whole, second = (TrainingState.start(config, source, source.start_rows()) for _ in range(2))
    stream = source.stream()
    whole.train_on(next(stream), make_objective(source))
    whole.save(tmp_path, stream.state_dict())
    place = second.restore(tmp_path)
    assert place is not None
    again = source.stream()
    again.load_state_dict(place)
    for state, batches in ((whole, stream), (second, again)):
        while not state.finished:
            state.train_on(next(batches), make_objective(source))
    expected = whole.steps.tensors()
    assert expected["enc.v"].dtype == HALF
    for name, found in second.steps.tensors().items():
        assert torch.equal(found.nan_to_num(), expected[name].nan_to_num()), name
    stored = read_tensor_header(checkpoint_path(tmp_path, 1)).tensors
    assert {name for name, spec in stored.items() if spec.code == "BF16"} == {
        "dec.m", "dec.v", "enc.m", "enc.v",
    }  # fmt: skip
    other = TrainingState.start(
        config.model_copy(update={"moments": "float32"}), source, source.start_rows()
    )
    with pytest.raises(UsageError, match="of another run: moments is bfloat16 there"):
        other.restore(tmp_path)


def of_process(rank, world, moments=HALF):
    """A process's part of an SAE, whose moments tell the latent, by name."""
    sae = TopKConfig(d_sae=7, k=2).build(3, torch.Generator().manual_seed(0))
    keep_shard(sae, rank, world)
    step = made(sae, moments)
    for p in (step.weights.enc, step.weights.dec):
        for sign, moment in ((-1, p.m), (1, p.v)):
            moment.copy_(sign * torch.arange(rank, 7, world)[:, None].expand_as(moment))
    return Spread(sae, LatentShard(rank, world, 7)), step.tensors()


def test_another_number_of_processes_reads_rounded_moments_and_refuses_others(tmp_path):
    path, seals = checkpoint_path(tmp_path, 3), []
    for rank in range(3):
        spread, tensors = of_process(rank, 3)
        seals.append(write_part(path, tensors, spread.shard))
    for rank in range(2):
        spread, own = of_process(rank, 2)
        found = read_parts(path, seals, spread, own, torch.device(DEVICE))
        for name in ("dec.m", "dec.v", "enc.m", "enc.v"):
            assert found[name].dtype == HALF
            assert torch.equal(found[name].cpu(), own[name].cpu()), name
    spread, own = of_process(0, 2, torch.float32)
    with pytest.raises(UsageError, match=r"of another SAE: its dec\.m differs"):
        read_parts(path, seals, spread, own, torch.device(DEVICE))
