"""Replicas of an SAE share out the rows of a batch, and train it as one process does."""

import signal
from shutil import copytree

import pytest
import torch
from rest import rest
from safetensors.torch import load_file
from training.launched import Launch, arguments, wait_for_checkpoint

from saelab.training.run import Run

TWO = {"replicas": 2, "n_tokens": 2000}


@pytest.fixture(scope="module")
def whole(small_store, tmp_path_factory):
    """A run of two replicas of two processes each."""
    out = tmp_path_factory.mktemp("whole") / "run"
    codes, said = Launch(arguments(small_store, out, **TWO), 4).end()
    assert codes == [0] * 4, said
    return out


@pytest.fixture(scope="module")
def killed(small_store, tmp_path_factory):
    """The same, one of whose processes was killed after a checkpoint."""
    out = tmp_path_factory.mktemp("killed") / "run"
    launch = Launch(arguments(small_store, out, **TWO), 4)
    wait_for_checkpoint(out)
    launch.commands[3].kill()
    codes, said = launch.end()
    assert codes == [1, 1, 1, -signal.SIGKILL]
    assert said.count("One of the 4 processes of this training has ended") == 1
    assert "Traceback" not in said
    assert not (out / "weights.safetensors").exists()
    return out


def weights(run):
    return load_file(run / "weights.safetensors")


def test_after_a_kill_all_end_and_the_same_command_continues_to_the_bit(
    small_store, whole, killed, tmp_path
):
    out = copytree(killed, tmp_path / "run")
    codes, said = Launch(arguments(small_store, out, **TWO), 4).end()
    assert codes == [0] * 4, said
    bits = [(run / "weights.safetensors").read_bytes() for run in (out, whole)]
    assert bits[0] == bits[1]


@pytest.mark.parametrize(("n", "replicas"), [(2, 2), *rest((1, 1), (2, 1), (4, 4))])
def test_other_processes_and_replicas_continue_to_the_same_sae(
    small_store, whole, killed, tmp_path, n, replicas
):
    out = copytree(killed, tmp_path / "run")
    command = arguments(small_store, out, **TWO | {"replicas": replicas})
    codes, said = Launch(command, n).end()
    assert codes == [0] * n, said
    for name, expected in weights(whole).items():
        torch.testing.assert_close(weights(out)[name], expected, atol=2e-4, rtol=1e-3)


@pytest.mark.exhaustive
def test_a_signal_to_one_of_two_replicas_leaves_one_whole_checkpoint(small_store, tmp_path):
    command = arguments(small_store, tmp_path / "out", replicas=2)
    launch = Launch(command, 2)
    wait_for_checkpoint(tmp_path / "out")
    launch.commands[1].process.terminate()
    codes, said = launch.end()
    assert codes == [128 + signal.SIGTERM] * 2, said
    kept = [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()]
    assert all(name.startswith("step_") for name in kept)  # No parts: each holds all latents.
    assert Launch(command, 2).end()[0] == [0, 0]
    assert Run(tmp_path / "out").finished


@pytest.mark.parametrize(
    ("n", "replicas", "more", "last", "says"),
    [
        (3, 2, [], [], "--replicas 2 does not divide the 3 processes of this launch"),
        (3, 3, [], [], "batch_size=100 is no multiple of --replicas 3"),
        (2, 2, ["--live"], [], "--replicas 2 is for training from a store"),
        (1, 2, [], [], "start 2 or a multiple by torchrun"),
        (2, 2, [], ["--replicas=1"], "differ in --replicas: 1 and 2"),
    ],
)
def test_what_replicas_cannot_share_out_is_refused_in_one_sentence(
    small_store, tmp_path, n, replicas, more, last, says
):
    command = [*arguments(small_store, tmp_path / "run", replicas=replicas), *more]
    codes, said = Launch(command, n, last).end()
    assert codes == [2] * n, said
    assert said.count("saelab train:") == 1
    assert says in said
    assert not (tmp_path / "run").exists()
