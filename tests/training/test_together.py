"""One SAE trained by several processes is the SAE that one process trains."""

import json
import signal
from shutil import copytree
from threading import Thread

import pytest
import torch
from activations.forked import Command, all_end_well
from conftest import small_config
from rest import rest
from safetensors.torch import load_file, save_file
from torch.distributed import HashStore, TCPStore
from training.launched import WIDTH, Launch, arguments, base, wait_for_checkpoint

from saelab.config import UsageError
from saelab.ranks import Ranks
from saelab.sae.spread import keep_shard
from saelab.shard import LatentShard, Replicas
from saelab.training.loop import train
from saelab.training.run import Run
from saelab.training.steps import fused_problem
from saelab.training.together import Together
from saelab.types import SparseCodes

SAES = {
    "topk": {"variant": "topk", "k": 4, "multi_k_coefficient": 0.125},
    "abs": {"variant": "abs-topk", "k": 4},
    "batch-abs": {"variant": "abs-topk", "k": 4, "selection": "batch"},
    "batch": {"variant": "batch-topk", "k": 3.5},
    "nested": {"variant": "matryoshka", "k": 4, "fractions": [0.1, 0.4, 0.5]},
    "drawn": {"variant": "matryoshka", "k": 4, "random_prefixes": 3, "prefix_loss": "sum"},
    "jump": {"variant": "jumprelu", "k": 4},
    "centred": {"variant": "jumprelu", "k": None, "l0_coefficient": 0.01, "subtract_b_dec": True},
}
OPTIONS = {
    "topk": {"ema": 0.9, "clip_norm": 0.05, "weight_decay": 0.01},
    "batch": {"objective": "masked"},
    "jump": {"keep_at": [500], "ema": 0.9},
}


@pytest.fixture(scope="module")
def sweep(small_store, mlp_store, tmp_path_factory):
    """A sweep file of every variant that processes can share, and its runs by one process."""
    path = tmp_path_factory.mktemp("sweep") / "sweep.json"
    runs = {
        name: {"sae": sae | {"d_sae": WIDTH}} | OPTIONS.get(name, {}) for name, sae in SAES.items()
    }
    runs["transcoder"] = {
        "sae": {"variant": "topk", "k": 4, "d_sae": WIDTH},
        "activations": str(mlp_store.path),  # pyrefly: ignore[bad-assignment]
        "site": "blocks.1.ln2.hook_out",  # pyrefly: ignore[bad-assignment]
        "target_site": "blocks.1.mlp.hook_post",  # pyrefly: ignore[bad-assignment]
        "skip": True,
    }
    path.write_text(json.dumps({"base": base(small_store), "runs": runs}))
    alone = Command([*sweep_of(path), "--out", str(path.parent / "alone")], {})
    alone.communicate()
    assert alone.returncode == 0
    return path


def sweep_of(path):
    return ["train", "sweep", str(path), "--device", "cpu"]


@pytest.mark.parametrize(("n", "replicas"), [(2, 1), (4, 2), *rest((2, 2), (4, 1))])
def test_every_variant_comes_out_as_from_one_process(sweep, tmp_path, n, replicas):
    given = ["--out", str(tmp_path), f"--replicas={replicas}"]
    codes, said = Launch([*sweep_of(sweep), *given], n).end()
    assert codes == [0] * n, said
    names = [*SAES, "transcoder"]
    for name in [*names, "topk/ema", "jump/ema", "jump/kept/tokens_000000000500"]:
        ours, theirs = Run(tmp_path / name), Run(sweep.parent / "alone" / name)
        for key, value in load_file(theirs.weights).items():
            torch.testing.assert_close(
                load_file(ours.weights)[key], value, atol=2e-4, rtol=1e-3, msg=f"{name} {key}"
            )
        last, expected = ours.metrics()[-1], theirs.metrics()[-1]
        assert last.keys() == expected.keys()
        for key in last.keys() - {"tokens_per_second"}:
            assert last[key] == pytest.approx(expected[key], rel=2e-3, abs=1e-6), (name, key)
        facts = ours.provenance()
        assert (facts["world_size"], facts["replicas"]) == (n, replicas)
        assert "world_size" not in theirs.provenance()
    # Dead latents were revived together, and the limit of the norm was reached.
    lines = {name: Run(tmp_path / name).metrics() for name in names}
    assert any("aux_k" in line for line in lines["topk"])
    assert any(line["gradient_norm"] > OPTIONS["topk"]["clip_norm"] for line in lines["topk"])


def test_processes_take_one_kind_of_step_or_none_of_them_trains():
    store, said = HashStore(), []

    def take(rank, step):
        with pytest.raises(UsageError) as problem:
            Together(Ranks(rank, 2), store).check_same_step(step)
        said.append(str(problem.value))

    both = [Thread(target=take, args=each) for each in enumerate(("fused", "autograd"))]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(said) == 2
    assert said[0] == said[1]
    assert "Process 0 takes the fused step and process 1 the autograd step" in said[0]


@pytest.mark.parametrize(
    ("variant", "options", "problem"),
    [
        ({"variant": "topk"}, {}, None),
        ({"variant": "jumprelu", "k": None}, {}, None),
        ({"variant": "topk"}, {"ties": "float32"}, "--ties float32 is for one process"),
        ({"variant": "topk"}, {"objective": "masked"}, "it knows the local objective alone"),
    ],
)
def test_several_gpus_take_the_fused_step_unasked(small_store, variant, options, problem):
    config = small_config(small_store, sae=variant | {"d_sae": WIDTH}, **options)
    sae = config.sae.build(8)
    keep_shard(sae, 0, 2)
    found = fused_problem(config, sae, torch.device("cuda"))
    assert found is None if problem is None else found.startswith(problem)


def select(rank, store_at, flat, out):
    """What one process of four keeps of integers, among which many are equal.

    All hold one SAE, then two replicas of it.
    """
    store = TCPStore("localhost", store_at)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=4)
    for count in (1, 2):
        replicas = Replicas.connect_all(rank, 4, count)
        size = 4 // count
        shard = LatentShard(rank % size, size, 10, replicas)
        own = shard.of(integers()[replicas.rows(12)], 1)
        indices = torch.arange(own.shape[1]).expand(own.shape)
        codes = SparseCodes(own, indices, own.shape[1])
        if flat:
            codes = codes.where(torch.ones_like(own, dtype=torch.bool))
        kept = shard.largest_of_all(codes, 2.5 if flat else 3)
        dense = shard.join_all(kept.dense(), 1)
        if dense is not None:
            save_file({"kept": dense.contiguous()}, out / f"{replicas.number}_of_{count}")
    torch.distributed.destroy_process_group()


def integers():
    return torch.randint(-3, 4, (12, 10), generator=torch.Generator().manual_seed(0)).float()


@pytest.mark.parametrize("flat", [False, True])
def test_of_equal_values_the_first_latent_of_all_processes_wins(flat, tmp_path):
    all_end_well(4, select, flat, tmp_path)
    x = integers()
    order = (-x.abs().flatten() if flat else -x.abs()).argsort(dim=-1, stable=True)
    chosen = order[..., : 30 if flat else 3]
    marks = torch.zeros(x.numel() if flat else x.shape, dtype=torch.bool)
    expected = x * marks.scatter(-1, chosen, value=True).view_as(x)
    kept = {name: load_file(tmp_path / name)["kept"] for name in ("0_of_1", "0_of_2", "1_of_2")}
    assert torch.equal(kept["0_of_1"], expected)
    assert torch.equal(torch.cat([kept["0_of_2"], kept["1_of_2"]]), expected)


def test_after_a_kill_all_end_and_the_same_command_continues(small_store, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert Launch(arguments(small_store, whole), 2).end()[0] == [0, 0]
    launch = Launch(arguments(small_store, out), 2)
    wait_for_checkpoint(out)
    launch.commands[1].kill()
    (first, second), said = launch.end()
    assert (first, second) == (1, -signal.SIGKILL)
    assert said.count("has ended") == 1
    assert "Traceback" not in said
    assert not (out / "weights.safetensors").exists()
    assert Launch(arguments(small_store, out), 2).end()[0] == [0, 0]
    assert (out / "weights.safetensors").read_bytes() == (
        whole / "weights.safetensors"
    ).read_bytes()


@pytest.mark.exhaustive
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize(
    ("variant", "more"),
    [
        *((name, []) for name in ("topk", "batch-topk", "matryoshka", "jumprelu")),
        ("topk", ["--moments=bfloat16"]),
    ],
)
def test_the_fused_step_continues_too_in_as_many_processes_or_another_number(
    small_store, tmp_path, variant, more, replicas
):
    interpreted = {"TRITON_INTERPRET": "1"}
    options = {"n_tokens": 40, "batch_size": 4, "checkpoint_every": 3, "clip_norm": 0.5}
    given = base(small_store) | options | {"dead_after": 8, "step": "fused"}
    rest = [f"--{key.replace('_', '-')}={value}" for key, value in given.items()]
    command = ["train", variant, "--d-sae=33", "--k=4", *rest, *more, "--device=cpu"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    both = [*command, f"--replicas={replicas}"]
    codes, said = Launch([*both, f"--out={whole}"], 2, **interpreted).end()
    assert codes == [0, 0], said
    launch = Launch([*both, f"--out={out}"], 2, **interpreted)
    wait_for_checkpoint(out)
    launch.commands[0].kill()
    launch.end()
    assert not (out / "weights.safetensors").exists()
    copytree(out, tmp_path / "alone")
    assert Launch([*both, f"--out={out}"], 2, **interpreted).end()[0] == [0, 0]
    weights = [run / "weights.safetensors" for run in (whole, out, tmp_path / "alone")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    alone = Command([*command, f"--out={tmp_path / 'alone'}"], interpreted)
    said = alone.communicate()[1]
    assert alone.returncode == 0, said
    for name, value in load_file(weights[0]).items():
        torch.testing.assert_close(load_file(weights[2])[name], value, atol=2e-4, rtol=1e-3)
    assert Run(out).provenance()["step"] == "fused"


def test_a_signal_to_one_stops_all_and_one_process_can_go_on(small_store, tmp_path):
    launch = Launch(arguments(small_store, tmp_path / "out"), 2)
    wait_for_checkpoint(tmp_path / "out")
    launch.commands[1].process.terminate()
    codes, said = launch.end()
    assert codes == [128 + signal.SIGTERM] * 2, said
    assert said.count("stopped by SIGTERM") == 1
    steps = sorted((tmp_path / "out" / "checkpoints").glob("step_*"))
    alone = Command(arguments(small_store, tmp_path / "out"), {})
    alone.communicate()
    assert alone.returncode == 0
    assert len(steps) <= 2
    whole = Run(tmp_path / "out")
    one = train(whole.config, out=tmp_path / "one", device="cpu")
    assert whole.metrics()[-1]["fvu"] == pytest.approx(one.metrics()[-1]["fvu"], rel=1e-2)


@pytest.mark.parametrize(
    ("variant", "changed", "says"),
    [
        (["topk", "--k=4"], ["--seed=3"], "Process 1 and process 0 differ in seed of "),
        (["k-sparse", "--k=4"], [], "cannot train a k-sparse SAE together"),
        (["topk", "--k=4", "--objective=e2e"], [], "--objective e2e runs the model"),
        (["topk", "--k=40"], [], "exceeds"),
    ],
)
def test_what_cannot_be_done_together_is_refused_by_all_in_one_sentence(
    small_store, tmp_path, variant, changed, says
):
    given = [f"--activations={small_store.path}", "--site=blocks.0.hook_resid_post"]
    given += ["--n-tokens=400", "--batch-size=100", "--device=cpu", f"--out={tmp_path / 'run'}"]
    codes, said = Launch(["train", *variant, "--d-sae=33", *given], 2, changed).end()
    assert codes == [2, 2], said
    assert said.count("saelab train:") == 1
    assert says in said
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_verb_of_one_process_is_refused_in_several(small_run):
    command = Command(["evaluate", str(small_run.path)], {"RANK": "0", "WORLD_SIZE": "2"})
    said = command.communicate()[1]
    assert command.returncode == 2
    assert "saelab evaluate: it runs in one process, and WORLD_SIZE says 2" in said
