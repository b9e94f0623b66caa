"""Two GPUs train the SAE that one trains, and one that it cannot hold; skipped elsewhere.

The tests with gloo and Triton's interpreter cover every form at small sizes. These cover NCCL, CUDA
graphs and the sums of real sizes: run them on a machine that is new to you.
"""

import signal
from typing import Any

import pytest
import torch
from activations.forked import all_end_well
from safetensors.torch import load_file, save_file
from torch.distributed import TCPStore
from training.launched import Launch, wait_for_checkpoint

from saelab.activations.arrays import write_arrays
from saelab.bench.machine import StepShape
from saelab.bench.step import step_config
from saelab.sae.context import LossContext
from saelab.sae.spread import keep_shard
from saelab.sae.variants import sized
from saelab.training.fused import FusedOptions, FusedStep
from saelab.training.run import Run
from saelab.training.untrained import untrained_sae

DEVICE = "cuda"
D_IN, D_SAE, K, BATCH, STEPS = 768, 32768, 32, 8192, 500
VARIANTS = ("topk", "batch-topk", "matryoshka", "jumprelu")

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Rows made of a few of 1,024 directions, and noise."""
    generator = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(1024, D_IN, generator=generator), dim=1)
    rows = torch.empty(16 * BATCH, D_IN, dtype=torch.bfloat16)
    for part in rows.split(BATCH):
        amounts = torch.rand(len(part), 1024, generator=generator)
        noise = 0.05 * torch.randn(len(part), D_IN, generator=generator)
        part.copy_(torch.where(amounts < 0.02, 50 * amounts, 0.0) @ atoms + noise)
    path = tmp_path_factory.mktemp("planted") / "store"
    write_arrays(path, {"x": rows}, dtype="bfloat16")
    return path


def command(store, out, **options):
    """The training of a TopK SAE with every step in its log."""
    given = {"n_tokens": STEPS * BATCH, "batch_size": BATCH, "log_every": 1, "clip_norm": 1.0}
    given |= {"d_sae": D_SAE, "k": K, "activations": store, "site": "x", "out": out}
    given |= {"device": DEVICE, "precision": "bfloat16", **options}
    return ["train", "topk", *(f"--{n.replace('_', '-')}={v}" for n, v in given.items())]


def trained(n, store, out, **options):
    """Train in so many processes; returns the run."""
    codes, said = Launch(command(store, out, **options), n).end()
    assert codes == [0] * n, said
    return Run(out)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_losses_part_by_at_most_a_thousandth_of_the_first(store, tmp_path, precision):
    """In bfloat16 by two: of nearly equal numbers rounded sums choose others (H200: 1.3e-3)."""
    losses = []
    for n in (1, 2):
        lines = trained(n, store, tmp_path / f"{n}", precision=precision).metrics()
        losses.append(torch.tensor([line["loss"] for line in lines]))
    one, two = losses
    assert len(one) == len(two) == STEPS
    most = {"float32": 1e-3, "bfloat16": 2e-3}[precision]
    assert float((one - two).abs().max() / one[0]) <= most


def test_after_a_kill_both_end_and_the_same_command_ends_with_the_same_bits(store, tmp_path):
    options = {"n_tokens": 4 * STEPS * BATCH, "checkpoint_every": STEPS // 5, "log_every": 50}
    whole, out = tmp_path / "whole", tmp_path / "out"
    trained(2, store, whole, **options)
    launch = Launch(command(store, out, **options), 2)
    wait_for_checkpoint(out)
    launch.commands[1].kill()
    codes, said = launch.end()
    assert codes == [1, -signal.SIGKILL]
    assert said.count("has ended") == 1
    assert "Traceback" not in said
    trained(2, store, out, **options)
    files = [run / "weights.safetensors" for run in (whole, out)]
    assert files[0].read_bytes() == files[1].read_bytes()


def chosen(variant, rank=0, world=1):
    """What a step chooses from integers, many of them equal: each row's sum of latents' hashes.

    Every set has its own sum, but for one chance in 2^40, and processes' sums add up.
    """
    sae: Any = sized(variant, D_SAE, K).build(D_IN, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        sae.W_enc.copy_(torch.randint(-1, 2, sae.W_enc.shape, generator=generator))
        sae.b_enc.zero_()
        if variant == "jumprelu":
            sae.threshold.fill_(3 * (4 * D_IN / 3) ** 0.5)  # Three standard deviations.
    if world > 1:
        keep_shard(sae, rank, world)
    device = torch.device(DEVICE, rank) if DEVICE == "cuda" else torch.device(DEVICE)
    step = FusedStep(sae, FusedOptions(BATCH, 5.0, torch.bfloat16), device)
    x = torch.randint(-2, 3, (BATCH, D_IN), generator=generator).float()
    step.prepare(LossContext(5.0, step=0, n_steps=1))
    step(x.to(device))
    codes = step.codes.rectangular()
    latent = codes.indices.long()
    if sae.shard is not None:
        latent = latent * world + rank
    hashes = (latent * 0x9E3779B1 + 12345) % 2**31 * 0x85EBCA6B % 2**40
    return torch.where(codes.active, hashes, 0).sum(1).cpu()


def join(rank, port):
    """Become one of two processes that exchange."""
    store = TCPStore("localhost", port)
    backend = "cpu:gloo,cuda:nccl" if DEVICE == "cuda" else "gloo"
    if DEVICE == "cuda":
        torch.cuda.set_device(rank)
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=2)


def process(rank, port, out):
    join(rank, port)
    sums = {variant: chosen(variant, rank, 2) for variant in VARIANTS}
    save_file(sums, out / f"{rank}")
    torch.distributed.destroy_process_group()


WIDE_IN, WIDE_SAE, WIDE_STEPS, WIDE_BYTES = 2304, 2**21, 100, 135 * 10**9
"""An SAE that one GPU cannot hold with its pre-activations; the bytes are what two need each."""


def errors_of_wide(rank, port, out):
    """The errors of steps of a wide SAE on rows of few directions, in a file of process 0."""
    join(rank, port)
    device = torch.device(DEVICE, rank) if DEVICE == "cuda" else torch.device(DEVICE)
    shape = StepShape(WIDE_IN, WIDE_SAE, 64, BATCH)
    sae = untrained_sae(step_config("topk", shape), WIDE_IN, WIDE_IN, device=device)
    keep_shard(sae, rank, 2)
    step = FusedStep(sae, FusedOptions(BATCH, float(WIDE_IN), torch.bfloat16), device)
    generator = torch.Generator(device).manual_seed(1)
    atoms = torch.randn(256, WIDE_IN, device=device, generator=generator)
    errors = []
    for number in range(WIDE_STEPS):
        amounts = torch.rand(BATCH, 256, device=device, generator=generator)
        step.set_lr(2e-4)
        step.prepare(LossContext(float(WIDE_IN), step=number, n_steps=WIDE_STEPS))
        step(torch.where(amounts < 0.05, 20 * amounts, 0.0) @ atoms)
        errors.append(step.error.clone())
    if rank == 0:
        save_file({"errors": torch.stack(errors).cpu()}, out / "errors")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(
    torch.cuda.device_count() > 0 and torch.cuda.mem_get_info()[0] < WIDE_BYTES,
    reason="needs two GPUs with 135 GB free",
)
def test_two_gpus_train_two_million_latents(tmp_path):
    all_end_well(2, errors_of_wide, tmp_path)
    errors = load_file(tmp_path / "errors")["errors"]
    assert errors.isfinite().all()
    assert errors[-10:].mean() < errors[:10].mean()


def test_of_equal_numbers_two_gpus_choose_those_of_one(tmp_path):
    all_end_well(2, process, tmp_path)
    parts = [load_file(tmp_path / f"{rank}") for rank in range(2)]
    for variant in VARIANTS:
        alone = chosen(variant)
        assert alone.any()
        assert torch.equal(parts[0][variant] + parts[1][variant], alone), variant
