"""What is free is the least of what the machine and its control groups leave."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from saelab import resources
from saelab.config import UsageError
from saelab.resources import Plan, free_memory

GB = 10**9
CPU = torch.device("cpu")


@pytest.fixture
def machine(tmp_path):
    path = tmp_path / "meminfo"
    path.write_text(f"MemTotal: 99 kB\nMemAvailable: {8 * GB // 1024} kB\n")
    return path


def group(path: Path, limit, used, cache):
    path.mkdir(parents=True, exist_ok=True)
    (path / "memory.max").write_text(f"{limit}\n")
    (path / "memory.current").write_text(f"{used}\n")
    (path / "memory.stat").write_text(f"anon 5\ninactive_file {cache}\n")


def test_the_machine_alone(machine, tmp_path):
    assert free_memory(tmp_path / "none", machine) == pytest.approx(8 * GB, rel=1e-6)


def test_a_containers_limit_counts_and_its_file_cache_does_not(machine, tmp_path):
    group(tmp_path / "cgroup", 4 * GB, 3 * GB, 1 * GB)
    assert free_memory(tmp_path / "cgroup", machine) == 2 * GB


def test_a_group_without_a_limit_changes_nothing(machine, tmp_path):
    group(tmp_path / "cgroup", "max", 3 * GB, 0)
    assert free_memory(tmp_path / "cgroup", machine) == pytest.approx(8 * GB, rel=1e-6)


def test_the_older_form_is_read(machine, tmp_path):
    path = tmp_path / "cgroup" / "memory"
    path.mkdir(parents=True)
    for name, text in (
        ("memory.limit_in_bytes", "3000000000"),
        ("memory.usage_in_bytes", "2500000000"),
        ("memory.stat", "total_inactive_file 100000000"),
    ):
        (path / name).write_text(text)
    assert free_memory(tmp_path / "cgroup", machine) == 600_000_000


def test_it_is_what_the_machine_says():
    assert 10**7 < free_memory() < 2**50


def test_a_plan_says_everything_on_one_line(capsys, tmp_path):
    Plan("evaluate", CPU, 5 * 10**6, "wait", 200.0, 7000, tmp_path / "new").announce()
    said = capsys.readouterr().err
    assert said.startswith("evaluate takes 5 MB of memory (")
    assert ", 7 kB of disk (" in said
    assert said.endswith(", about 3 min.\n")


def test_what_cannot_fit_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(resources, "free_memory", lambda: GB)
    with pytest.raises(UsageError) as raised:
        Plan("train", CPU, 3 * GB, "lower --d-sae").announce()
    assert str(raised.value) == (
        "train takes about 3 GB of memory, and 1 GB is free; lower --d-sae."
    )
    with pytest.raises(UsageError, match=r"writes about 1e\+03 PB at .*; lower --d-sae\."):
        Plan("train", CPU, 3, "lower --d-sae", disk=10**18, path=tmp_path).announce()


def test_work_on_a_gpu_may_need_main_memory_too(monkeypatch, capsys):
    monkeypatch.setattr(resources, "free_on", lambda _: 9 * GB)
    monkeypatch.setattr(resources, "free_memory", lambda: GB)
    plan = Plan("features", torch.device("cuda"), 2 * GB, "lower --n-tokens", beside=3 * GB)
    assert not plan.fits
    with pytest.raises(UsageError) as raised:
        plan.announce()
    assert str(raised.value) == (
        "features takes about 3 GB of memory, and 1 GB is free; lower --n-tokens."
    )
    fitting = replace(plan, beside=GB // 2)
    assert fitting.fits
    fitting.announce()
    said = capsys.readouterr().err
    assert said == (
        "features takes 2 GB of GPU memory (9 GB free), 500 MB of memory (1 GB free).\n"
    )
