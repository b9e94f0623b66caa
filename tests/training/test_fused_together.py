"""A fused step of several processes is that of one process, under the interpreter."""

from typing import Any

import pytest
import torch
from activations.forked import processes
from interpreted import prepare_once_for_each_kernel
from kernels.triton_device import DEVICE
from safetensors.torch import load_file, save_file
from torch.distributed import TCPStore
from typing_extensions import override

from saelab.kernels.exchange import LatentExchange, received
from saelab.kernels.triton.codes import jump
from saelab.kernels.triton.select.batch import FlatPlace, select_batch_top_k
from saelab.kernels.triton.step.rules import Launch
from saelab.sae.abs_topk import AbsTopKConfig
from saelab.sae.batch_topk import BatchTopKConfig
from saelab.sae.context import LossContext
from saelab.sae.jumprelu import JumpReLUConfig
from saelab.sae.matryoshka import MatryoshkaConfig
from saelab.sae.spread import keep_shard
from saelab.sae.topk import TopKConfig
from saelab.sae.transcoder import make_transcoder
from saelab.shard import LatentShard
from saelab.training import fused, fused_graphs
from saelab.training.fused import FusedOptions, FusedStep
from saelab.training.spread import Spread

# Two chunks of columns, the second not full; processes that hold different numbers of latents.
D_IN, D_OUT, D_SAE, BATCH, V, STEPS = 20, 10, 13, 3, 5.0, 2
SMALL = Launch(columns=16, pairs=2, latents=3, slice=3, programs=1)
AUX = {"aux_coefficient": 0.5, "aux_k": 3}
FORMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "topk": (TopKConfig, {"k": 3, "aux_coefficient": 0}),
    "wide": (TopKConfig, {"k": 9, "aux_coefficient": 0}),
    "revived": (TopKConfig, {"k": 3, **AUX}),
    "multi": (TopKConfig, {"k": 2, "multi_k_coefficient": 0.125, "aux_coefficient": 0}),
    "abs": (AbsTopKConfig, {"k": 3, **AUX}),
    "batch": (BatchTopKConfig, {"k": 2.75, **AUX}),
    "batch-abs": (AbsTopKConfig, {"k": 3, "selection": "batch", "subtract_b_dec": False}),
    "nested": (MatryoshkaConfig, {"k": 3, "fractions": (0.1, 0.3, 0.6), **AUX}),
    "jump": (JumpReLUConfig, {"k": 3, "bandwidth": 0.5, **AUX}),
    "transcoder": (TopKConfig, {"k": 3, **AUX}),
}
QUICK = ("topk", "nested", "jump")
REST = [pytest.param(form, marks=pytest.mark.exhaustive) for form in FORMS if form not in QUICK]
PRECISIONS = {torch.float32: QUICK, torch.bfloat16: ("topk",)}
"""What is trained in each precision before the others are asked for."""


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
    x = torch.randint(-2, 3, (9, 151), generator=generator)
    x[:, :5] = 0  # -0.0 is no smaller.
    return torch.where(x == 0, -0.0, x).to(dtype)


def selected(case, rank, world):
    """Which entries of a batch two processes select together; None beside process 0."""
    (n, dtype, signed), shard = SELECTIONS[case], LatentShard(rank, world, 151)
    own = shard.of(integers(dtype), 1).contiguous()
    out = FlatPlace.empty(min(n, own.numel()), torch.device(DEVICE))
    out.rows.fill_(-1)
    select_batch_top_k(
        own.to(DEVICE), n, by_magnitude=signed, out=out, exchange=LatentExchange(shard)
    )
    rows, latents = out.rows.cpu().long(), out.indices.cpu().long()
    marks = torch.zeros(own.shape)
    marks[rows[rows >= 0], latents[rows >= 0]] = 1
    return shard.join_all(marks, 1)


def build(form):
    cls, given = FORMS[form]
    sae = cls(d_sae=D_SAE, **given).build(D_IN, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    if form == "transcoder":
        make_transcoder(sae, D_OUT, skip=True, generator=generator)
    with torch.no_grad():
        # Else a row's only code would have a residual at right angles, and a gradient of noise.
        sae.b_enc.normal_(std=0.1, generator=generator)
        if form == "jump":
            sae.threshold.uniform_(0, 1.5, generator=generator)
    return sae


def trained(form, precision, rank=0, world=1):
    """Tensors of a few steps, whole, and which codes each step chose; None beside process 0."""
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
        keep_shard(sae, rank, world)
    clip = 0.05 if form in {"topk", "nested", "jump", "transcoder"} else None
    options = FusedOptions(BATCH, V, precision, dead_after=BATCH, clip_norm=clip, launch=SMALL)
    step = FusedStep(sae.to(DEVICE), options)
    spread = Spread(sae, sae.shard) if sae.shard else None
    out = {}
    for number, x in enumerate(xs[:1] if integers else xs):
        step.set_lr(1e-2)
        step.prepare(LossContext(V, step=number, n_steps=STEPS))
        target = x[:, :D_OUT].cos().to(DEVICE) if sae.is_transcoder else None
        step(x.to(DEVICE), target=target)
        codes = step.codes.dense()
        whole = codes if sae.shard is None else sae.shard.join_all(codes, 1)
        if whole is not None:
            out[f"codes {number}"] = whole.contiguous()
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
        whole = tensor if dim is None else spread.shard.join_all(tensor, dim)
        if whole is not None and name != "counts":
            out[name] = whole
    return out


class Counted(LatentExchange):
    """An exchange with nobody, which notes what it would receive."""

    def __init__(self, shard):
        super().__init__(shard)
        self.received = []

    @override
    def sum(self, part):
        self.begin_sum(part)
        return part

    @override
    def begin_sum(self, part):
        n = part.numel() * part.element_size()
        self.received.append(2 * (self.shard.size - 1) * n // self.shard.size)

    @override
    def end_first(self):
        pass

    @override
    def begin_gather(self, own):
        return self.gather(own)

    @override
    def gather(self, own):
        self.received.append((self.shard.size - 1) * own.numel() * own.element_size())
        return own.expand(self.shard.size, *own.shape).contiguous()

    @override
    def most(self, n):
        return int(n)


@pytest.mark.parametrize(
    ("form", "precision"),
    [
        ("multi", torch.bfloat16),
        ("nested", torch.bfloat16),
        ("jump", torch.float32),
        *(
            pytest.param(form, torch.float32, marks=pytest.mark.exhaustive)
            for form in ("wide", "batch", "transcoder")
        ),
    ],
)
def test_a_step_receives_as_many_bytes_as_the_law_says(form, precision, monkeypatch):
    monkeypatch.setattr(fused, "LatentExchange", Counted)
    cls, given = FORMS[form]
    sae = cls(d_sae=D_SAE, **(given | {"aux_coefficient": 0})).build(D_IN)
    if form == "transcoder":
        make_transcoder(sae, D_OUT, skip=True)
    keep_shard(sae, 1, 4)
    step = FusedStep(sae.to(DEVICE), FusedOptions(BATCH, V, precision, launch=SMALL))
    step.prepare(LossContext(V, step=0, n_steps=STEPS))
    step(torch.zeros(BATCH, D_IN, device=DEVICE), target=torch.ones(BATCH, sae.d_out))
    exchange = step.graphs.step.exchange
    assert isinstance(exchange, Counted)
    half = precision == torch.bfloat16
    law = received(step.rules.sae, sae.shard, BATCH, D_IN, sae.d_out, half=half)
    assert exchange.received == law


def few_rooms():
    """Few entries would else have room for thousands, each of which the interpreter visits."""
    fused_graphs.LEAST_ROOM = jump.LEAST_ROOM = 32  # pyrefly: ignore[bad-assignment]


def process(rank, world, port, forms, out):
    prepare_once_for_each_kernel()
    few_rooms()
    store = TCPStore("localhost", port)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    chosen = {case: selected(case, rank, world) for case in SELECTIONS}
    if rank == 0:
        save_file({case: marks.contiguous() for case, marks in chosen.items()}, out / "selected")
    for precision in PRECISIONS:
        for form in forms[precision]:
            found = trained(form, precision, rank, world)
            if rank == 0:
                save_file(found, out / f"{form} {precision}")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module", autouse=True)
def _few_rooms():
    with pytest.MonkeyPatch.context() as patch:
        for module in (fused_graphs, jump):
            patch.setattr(module, "LEAST_ROOM", 32)
        yield


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """What two processes train, by form and precision; each group is trained once."""
    out, done = tmp_path_factory.mktemp("together"), set()

    def found(form=None, precision=torch.float32):
        quick = form is None or form in PRECISIONS[precision]
        if quick not in done:
            done.add(quick)
            forms = {p: [f for f in FORMS if (f in PRECISIONS[p]) == quick] for p in PRECISIONS}
            store = TCPStore("localhost", 0, is_master=True)
            started = [
                processes().Process(target=process, args=(rank, 2, store.port, forms, out))
                for rank in range(2)
            ]
            for each in started:
                each.start()
            for each in started:
                each.join()
            assert [each.exitcode for each in started] == [0, 0]
        return load_file(out / ("selected" if form is None else f"{form} {precision}"))

    return found


@pytest.mark.parametrize("form", [*QUICK, *REST])
def test_two_processes_train_as_one_does(form, of_two):
    expected, found = trained(form, torch.float32), of_two(form, torch.float32)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, atol=3e-6, rtol=1e-4, equal_nan=True, msg=lambda m, n=name: n + m
        )
    if FORMS[form][1].get("aux_coefficient"):
        assert any(float(found[name]) > 0 for name in found if name.startswith("aux"))


@pytest.mark.parametrize(
    "form", ["topk", *(pytest.param(f, marks=pytest.mark.exhaustive) for f in FORMS if f != "topk")]
)
def test_of_equal_entries_two_processes_choose_the_same(form, of_two):
    expected = trained(form, torch.bfloat16)["codes 0"]
    assert torch.equal(of_two(form, torch.bfloat16)["codes 0"], expected)


def test_of_a_batch_of_integers_two_processes_select_what_a_sort_puts_first(of_two):
    for case, marks in of_two().items():
        n, dtype, signed = SELECTIONS[case]
        x = integers(dtype).float().flatten()
        first = (x.abs() if signed else x).sort(descending=True, stable=True).indices[:n]
        expected = torch.zeros(len(x)).index_fill(0, first, 1).view(9, 151)
        assert torch.equal(marks, expected), case
