"""Which device a process takes."""

import pytest
import torch
from stand_in import answer_as

from saelab.config import UsageError
from saelab.lm.load import device_beside, own_device, resolve_device


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine with two GPUs, of which only the numbers are real; the list is of current ones."""
    current, empty = [], torch.empty
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append(device.index))
    monkeypatch.setattr(torch, "empty", lambda n, device: empty(n))
    return current


@pytest.mark.parametrize("asked", ["auto", "cuda"])
@pytest.mark.parametrize(("local", "own"), [("0", 0), ("1", 1), ("3", 1)])
def test_each_process_of_a_machine_takes_a_gpu_and_makes_it_current(
    two_gpus, monkeypatch, asked, local, own
):
    """Kernels are launched on the current GPU, wherever their tensors are."""
    monkeypatch.setenv("LOCAL_RANK", local)
    assert own_device(asked) == torch.device("cuda", own)
    assert two_gpus == [own]


def test_a_numbered_gpu_is_made_current_and_another_device_changes_nothing(two_gpus):
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert two_gpus == [1]
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cpu") == torch.device("cpu")
    assert two_gpus == [1]


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(UsageError, match=r"'cuda:99' is not available"):
        resolve_device("cuda:99")


class OnSecond:
    """A model on the second GPU."""

    device = torch.device("cuda", 1)


@pytest.fixture
def on_second(random_lm):
    lm = OnSecond()
    answer_as(lm, random_lm)
    return lm


@pytest.mark.parametrize("asked", ["auto", "cuda", "cuda:1"])
def test_the_gpu_of_a_given_model_is_made_current(two_gpus, on_second, asked):
    assert device_beside(on_second, asked) == torch.device("cuda", 1)
    assert two_gpus == [1]


def test_what_runs_a_model_is_where_the_model_is(random_lm, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_beside(None, "auto") == torch.device("cuda")
    for asked in ("auto", "cpu"):
        assert device_beside(random_lm, asked) == torch.device("cpu")
    with pytest.raises(UsageError, match="The model is on cpu, not on meta; load it there"):
        device_beside(random_lm, "meta")
