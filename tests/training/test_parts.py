"""Checkpoints in parts are read by any number of processes, and damage to a part is seen."""

import errno
import json

import pytest
import torch
from typing_extensions import override

from saelab.bench.machine import StepShape
from saelab.bench.step import step_config
from saelab.config import UsageError
from saelab.formats.tensors import write_tensors
from saelab.sae.spread import keep_shard
from saelab.sae.topk import TopKConfig
from saelab.shard import LatentShard
from saelab.training.checkpoint import (
    IN_PARTS,
    CheckpointState,
    checkpoint_path,
    remove_checkpoints,
    save_checkpoint,
    take_newest,
)
from saelab.training.held import UnwrittenPartError, write_held
from saelab.training.parts import part_path, read_parts, write_part
from saelab.training.spread import Spread
from saelab.training.steps import AutogradSteps

D_SAE = 7


def part(rank, world):
    """An SAE's part after a step of Adam, its optimizer's tensors among them."""
    sae = TopKConfig(d_sae=D_SAE, k=2).build(3, torch.Generator().manual_seed(0))
    if world > 1:
        keep_shard(sae, rank, world)
    optimizer = torch.optim.Adam(sae.parameters())
    for parameter in sae.parameters():
        parameter.grad = parameter.detach().clone()
    optimizer.step()
    tensors = {f"sae.{name}": t for name, t in sae.state_dict().items()}
    tensors["since_fired"] = torch.arange(rank, D_SAE, world)
    own = dict(tensors)
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{name}": t for name, t in state.items()}
    return Spread(sae, LatentShard(rank, world, D_SAE), optimizer), tensors, own


def written(directory, world, step=3):
    path = checkpoint_path(directory, step)
    seals = []
    for rank in range(world):
        spread, tensors, _ = part(rank, world)
        seals.append(write_part(path, tensors, spread.shard))
    return path, seals


def read(path, seals, rank, world):
    spread, _, own = part(rank, world)
    return read_parts(path, seals, spread, own, torch.device("cpu"))


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_any_number_of_processes_reads_the_latents_it_holds(tmp_path, world):
    path, seals = written(tmp_path, 3)
    for rank in range(world):
        expected, found = part(rank, world)[1], read(path, seals, rank, world)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name


def test_an_altered_missing_or_foreign_part_is_refused(tmp_path):
    path, seals = written(tmp_path, 2)
    with pytest.raises(UsageError, match="is not the part"):
        read(path, [seals[0], seals[0]], 0, 2)
    second = part_path(path, 1, 2)
    whole = second.read_bytes()
    second.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    read(path, seals, 0, 2)  # It holds nothing of that part.
    for rank, world in ((1, 2), (0, 1)):
        with pytest.raises(UsageError, match="was altered"):
            read(path, seals, rank, world)
    second.unlink()
    with pytest.raises(UsageError, match="part_000000003_1_of_2"):
        read(path, seals, 0, 2)


def test_another_shape_is_refused_before_memory_is_allocated(tmp_path, monkeypatch):
    path, seals = written(tmp_path, 2)
    monkeypatch.setattr("saelab.training.parts.read_tensors", None)
    spread, _, own = part(0, 1)
    wrong = {name: tensor[:, None] for name, tensor in own.items() if tensor.ndim == 1}
    with pytest.raises(UsageError, match="of another SAE: its"):
        read_parts(path, seals, spread, own | wrong, torch.device("cpu"))


def test_parts_go_with_their_checkpoints_and_those_of_none_are_removed(tmp_path):
    before = None
    for step in (3, 6, 9):
        _, seals = written(tmp_path, 2, step)
        state = CheckpointState(step=step, batches={})
        before = save_checkpoint(tmp_path, {}, state, None, before=before, parts=seals)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        f"{name}.safetensors"
        for step in (6, 9)
        for name in (f"step_{step:09d}", *(f"part_{step:09d}_{r}_of_2" for r in range(2)))
    }
    assert take_newest(tmp_path, lambda found: found.parts) == seals
    remove_checkpoints(tmp_path, keep=True)
    assert len([*tmp_path.iterdir()]) == 3
    remove_checkpoints(tmp_path)
    assert not tmp_path.exists()


@pytest.mark.parametrize("seals", ['["a"]', "[1, 2]", '"ab"', "["])
def test_a_checkpoint_that_does_not_name_its_parts_is_damaged(tmp_path, seals):
    state = json.dumps(CheckpointState(step=1, batches={}).model_dump(mode="json"))
    facts = {"format": IN_PARTS, "state": state, "parts": seals}
    write_tensors(checkpoint_path(tmp_path, 1), {}, facts)
    with pytest.raises(UsageError, match="no other checkpoint is whole"):
        take_newest(tmp_path, lambda found: found)


class Told(LatentShard):
    """Process 0 of two, of which the second has written its part."""

    @override
    def tell_all(self, text, device):
        return [text, "5ea1".ljust(len(text))]


def test_a_part_that_cannot_be_written_is_told_to_all(tmp_path, monkeypatch):
    config = step_config("topk", StepShape(3, D_SAE, 2))
    sae = config.sae.build(3, torch.Generator().manual_seed(0))
    keep_shard(sae, 0, 2)
    steps = AutogradSteps(config, sae, torch.device("cpu"))
    steps.spread.shard = Told(0, 2, D_SAE)
    path, device = checkpoint_path(tmp_path, 3), torch.device("cpu")
    none, seals = write_held(path, steps, device)
    assert none == {}
    assert seals is not None
    assert seals[1] == "5ea1"
    spread, _, own = part(0, 1)
    with pytest.raises(UsageError, match="part_000000003_1_of_2"):
        read_parts(path, seals, spread, own, device)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "grün")

    monkeypatch.setattr("saelab.training.held.write_part", full)
    with pytest.raises(UnwrittenPartError, match=r"Process 0 could not write .* gr.n") as caught:
        write_held(path, steps, device)
    assert caught.value.exit_code == 1
