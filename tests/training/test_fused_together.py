"""A fused step of several processes is that of one process, under the interpreter."""

from functools import cache

import pytest
import torch
from activations.forked import all_end_well
from interpreted import prepare_once_for_each_kernel
from kernels.triton_device import DEVICE
from rest import rest
from safetensors.torch import load_file, save_file
from torch.distributed import TCPStore
from training.fused_forms import BATCH, D_IN, D_OUT, FORMS, SMALL, STEPS, V, build

from saelab.kernels.exchange import LatentExchange
from saelab.kernels.triton.codes import jump
from saelab.kernels.triton.select.batch import FlatPlace, select_batch_top_k
from saelab.sae.context import LossContext
from saelab.sae.spread import keep_shard
from saelab.shard import ALONE, LatentShard, Replicas
from saelab.training import fused_graphs
from saelab.training.fused import FusedOptions, FusedStep
from saelab.training.spread import Spread

FIRST = {
    (1, torch.float32): ("topk", "nested", "jump"),
    (1, torch.bfloat16): ("topk",),
    (2, torch.float32): ("batch",),
    (2, torch.bfloat16): (),
}
"""By replicas of two processes each, and precision: what is trained before others are asked for."""


def cases(precision):
    """Every form, trained in one replica and in two."""
    every = [(form, count) for count in (1, 2) for form in FORMS]
    first = [case for case in every if case[0] in FIRST[case[1], precision]]
    return [*first, *rest(*(case for case in every if case not in first))]


ROOM, ROWS = 32, (10, 151)
SELECTIONS = {
    "a row is cut": (20, torch.float32, False),
    "every entry is counted": (400, torch.float32, True),
    "one": (1, torch.bfloat16, False),
    "zeros are ties too": (900, torch.bfloat16, False),
    "more than a process has": (1100, torch.float32, True),
}
"""How many of a batch's integers are selected, their type, and whether by magnitude."""


def integers(dtype):
    generator = torch.Generator().manual_seed(4)
    x = torch.randint(-2, 3, ROWS, generator=generator)
    x[:, :5] = 0  # -0.0 is no smaller.
    return torch.where(x == 0, -0.0, x).to(dtype)


def selected(case, rank, world, replicas):
    """Which entries of a batch several processes select together, in process 0."""
    (n, dtype, signed), size = SELECTIONS[case], world // replicas.count
    shard, x = LatentShard(rank % size, size, 151, replicas), integers(dtype)
    own = shard.of(x[replicas.rows(len(x))], 1).contiguous()
    out = FlatPlace.empty(min(n, own.numel()), torch.device(DEVICE))
    out.rows.fill_(-1)
    select_batch_top_k(
        own.to(DEVICE), n, by_magnitude=signed, out=out, exchange=LatentExchange(shard)
    )
    rows, latents = out.rows.cpu().long(), out.indices.cpu().long()
    marks = torch.zeros(own.shape)
    marks[rows[rows >= 0], latents[rows >= 0]] = 1
    return whole(shard, marks, len(x))


def whole(shard, own, batch):
    """The entries of all latents and rows, of which this process has some; in process 0."""
    out = own.new_zeros(batch, shard.d_sae)
    joined = shard.join_all(own, 1)
    if joined is not None:
        out[shard.replicas.rows(batch)] = joined.to(out.device)
    return shard.replicas.sum_all(out)


def trained(form, precision, rank=0, world=1, replicas=ALONE):
    """Tensors of a few steps, whole, and which codes each step chose; in process 0."""
    # Where this form's entries are above their thresholds, there is no room for them.
    fused_graphs.LEAST_ROOM = 0 if form == "dense" else ROOM  # pyrefly: ignore[bad-assignment]
    sae = build(form)
    integers = precision == torch.bfloat16
    generator = torch.Generator().manual_seed(3)
    if integers:  # Many pre-activations are equal.
        with torch.no_grad():
            sae.W_enc.copy_(torch.randint(-1, 2, sae.W_enc.shape, generator=generator))
            sae.b_enc.zero_()
    xs = torch.randn(STEPS, BATCH, D_IN, generator=generator)
    if integers:
        xs = xs.round().clamp(-2, 2)
    if world > 1:
        keep_shard(sae, rank, world, replicas)
    clip = 0.05 if form in {"topk", "batch", "nested", "jump", "transcoder"} else None
    own, rows = BATCH // replicas.count, replicas.rows(BATCH)
    options = FusedOptions(own, V, precision, dead_after=BATCH, clip_norm=clip, launch=SMALL)
    step = FusedStep(sae.to(DEVICE), options)
    spread = Spread(sae, sae.shard) if sae.shard else None
    out = {}
    for number, x in enumerate(xs[:1] if integers else xs):
        step.set_lr(1e-2)
        step.prepare(LossContext(V, step=number, n_steps=STEPS))
        x = x[rows]  # noqa: PLW2901
        target = x[:, :D_OUT].cos().to(DEVICE) if sae.is_transcoder else None
        step(x.to(DEVICE), target=target)
        codes = step.codes.dense()
        out[f"codes {number}"] = codes if sae.shard is None else whole(sae.shard, codes, BATCH)
        out[f"error {number}"] = step.error.clone()
        if "aux_k" in step.penalties:
            out[f"aux {number}"] = step.penalties["aux_k"][1].clone()
    out |= joined(step, spread)
    return {name: t.cpu().contiguous() for name, t in out.items()}


def joined(step, spread):
    """The tensors that a step changes, whole; of several processes, in the first."""
    out = {}
    for name, tensor in step.tensors().items():
        dim = None if spread is None else spread.dim(name, tensor)
        every = tensor if dim is None else spread.shard.join_all(tensor, dim)
        if every is not None and name != "counts":
            out[name] = every
    return out


def few_rooms():
    """Few entries would else have room for thousands, each of which the interpreter visits."""
    fused_graphs.LEAST_ROOM = jump.LEAST_ROOM = ROOM  # pyrefly: ignore[bad-assignment]


def process(rank, port, world, forms, out, count):
    prepare_once_for_each_kernel()
    few_rooms()
    store = TCPStore("localhost", port)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    replicas = Replicas.connect_all(rank, world, count)
    chosen = {case: selected(case, rank, world, replicas) for case in SELECTIONS}
    if rank == 0:
        save_file({case: marks.contiguous() for case, marks in chosen.items()}, out / "selected")
    for precision, those in forms.items():
        for form in those:
            found = trained(form, precision, rank, world, replicas)
            if rank == 0:
                save_file(found, out / f"{form} {precision}")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module", autouse=True)
def _few_rooms():
    with pytest.MonkeyPatch.context() as patch:
        for module in (fused_graphs, jump):
            patch.setattr(module, "LEAST_ROOM", ROOM)
        yield


@pytest.fixture(scope="module")
def of_several(tmp_path_factory):
    """What processes of one replica or two train, by form and precision; each group once."""
    done = {}

    def found(form=None, precision=torch.float32, count=1):
        quick = form is None or form in FIRST[count, precision]
        if (quick, count) not in done:
            out = done[quick, count] = tmp_path_factory.mktemp("together")
            firsts = {p: those for (n, p), those in FIRST.items() if n == count}
            forms = {p: [f for f in FORMS if (f in firsts[p]) == quick] for p in firsts}
            all_end_well(2 * count, process, 2 * count, forms, out, count)
        name = "selected" if form is None else f"{form} {precision}"
        return load_file(done[quick, count] / name)

    return found


@cache
def alone(form, precision):
    return trained(form, precision)


@pytest.mark.parametrize(("form", "count"), cases(torch.float32))
def test_several_processes_train_as_one_does(form, count, of_several):
    expected, found = alone(form, torch.float32), of_several(form, torch.float32, count)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, atol=3e-6, rtol=1e-4, equal_nan=True, msg=lambda m, n=name: n + m
        )
    if FORMS[form][1].get("aux_coefficient"):
        assert any(float(found[name]) > 0 for name in found if name.startswith("aux"))


@pytest.mark.parametrize(("form", "count"), cases(torch.bfloat16))
def test_of_equal_entries_several_processes_choose_the_same(form, count, of_several):
    expected = alone(form, torch.bfloat16)["codes 0"]
    assert torch.equal(of_several(form, torch.bfloat16, count)["codes 0"], expected)


@pytest.mark.parametrize("count", [1, 2])
def test_of_a_batch_of_integers_processes_select_what_a_sort_puts_first(count, of_several):
    for case, marks in of_several(count=count).items():
        n, dtype, signed = SELECTIONS[case]
        x = integers(dtype).float().flatten()
        first = (x.abs() if signed else x).sort(descending=True, stable=True).indices[:n]
        expected = torch.zeros(len(x)).index_fill(0, first, 1).view(ROWS)
        assert torch.equal(marks, expected), case
