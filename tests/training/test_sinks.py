"""Trainings log elsewhere too, if asked; a sink neither ends a training nor breaks its curves."""

import json
import sys
from types import ModuleType

import pytest
from conftest import small_config

from saelab.config import UsageError
from saelab.interrupt import Stopped
from saelab.training import loop, sinks
from saelab.training.loop import train
from saelab.training.sinks import logging_to


class FakeWandB(ModuleType):
    """What saelab calls of wandb: runs by id, each with lines; steps only rise, as there."""

    def __init__(self):
        super().__init__("wandb")
        self.runs = {}
        self.asked = []
        self.fails_at = None
        self.closed = 0

    def init(self, **options):
        self.asked.append(options)
        lines = self.runs.setdefault(options["id"], {})
        return FakeRun(self, lines)


class FakeRun:
    def __init__(self, owner, lines):
        self.owner, self.lines = owner, lines

    def log(self, figures, step):
        if self.owner.fails_at == step:
            raise ConnectionError("no route\nto host")
        if step > max(self.lines, default=-1):
            self.lines[step] = figures

    def finish(self):
        self.owner.closed += 1


@pytest.fixture
def wandb(monkeypatch):
    fake = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(sinks, "find_spec", lambda _: object())
    return fake


def lines_of(run):
    return {line["step"]: line for line in run.metrics()}


def test_each_line_is_logged_under_its_step(small_store, tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    with logging_to(["wandb"]):
        run = train(small_config(small_store), out=tmp_path / "run")
    (logged,) = wandb.runs.values()
    expected = {step: {k: v for k, v in line.items() if k != "step"}
                for step, line in lines_of(run).items()}  # fmt: skip
    assert logged == expected
    assert (wandb.asked[0]["project"], wandb.asked[0]["name"]) == ("mine", "run")
    assert wandb.asked[0]["config"]["lr"] == 1e-2
    assert wandb.closed == 1
    # Outside of the context, nothing is logged.
    train(small_config(small_store, seed=1), out=tmp_path / "other")
    assert len(wandb.runs) == 1


def interrupted(monkeypatch, after):
    """Have training be asked to stop in this step."""
    original = loop.Training.step_and_write
    count = iter(range(10**6))

    def stepped(self, batch, *, stopping):
        line = original(self, batch, stopping=stopping)
        if next(count) == after:
            raise Stopped(15)
        return line

    monkeypatch.setattr(loop.Training, "step_and_write", stepped)


def test_a_run_that_goes_on_has_the_same_curve(small_store, tmp_path, wandb, monkeypatch):
    config = small_config(small_store, checkpoint_every=15)
    with monkeypatch.context() as patched, logging_to(["wandb"]):
        interrupted(patched, 24)
        with pytest.raises(Stopped):
            train(config, out=tmp_path / "run")
    with logging_to(["wandb"]):
        run = train(config, out=tmp_path / "run")
    (logged,) = wandb.runs.values()
    assert list(logged) == sorted(logged) == list(lines_of(run)) == [10, 20, 30, 40]
    assert all(logged[n]["fvu"] == line["fvu"] for n, line in lines_of(run).items())


def test_a_sink_that_fails_is_left_out(small_store, tmp_path, wandb, capsys):
    wandb.fails_at = 20
    with logging_to(["wandb"]):
        run = train(small_config(small_store), out=tmp_path / "run")
    assert run.finished
    assert list(lines_of(run)) == [10, 20, 30, 40]
    (logged,) = wandb.runs.values()
    assert list(logged) == [10]
    said = [line for line in capsys.readouterr().err.splitlines() if "wandb" in line]
    assert said == ["Note: --log wandb has failed and is left out: no route to host."]


def test_a_sink_that_cannot_begin_ends_it_before_a_step(small_store, tmp_path, wandb, monkeypatch):
    def refuse(**_):
        raise RuntimeError("api_key not configured")

    monkeypatch.setattr(wandb, "init", refuse, raising=False)
    with logging_to(["wandb"]), pytest.raises(UsageError, match="cannot begin: api_key not"):
        train(small_config(small_store), out=tmp_path / "run")
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == b""


def test_a_missing_package_is_told_before_anything_else(tmp_path, capsys, monkeypatch):
    from saelab.cli import main

    monkeypatch.setattr(sinks, "find_spec", lambda _: None)
    words = ["train", "topk", "--activations", str(tmp_path), "--site", "a", "--d-sae", "2"]
    words += ["--n-tokens", "9", "--lr", "1", "--out", str(tmp_path / "run"), "--k", "1"]
    assert main([*words, "--log", "tensorboard"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("saelab train: --log tensorboard needs the package tensorboard: pip in")
    assert not (tmp_path / "run").exists()


def test_tensorboards_own_reader_finds_the_curve(small_store, tmp_path, monkeypatch):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = small_config(small_store, checkpoint_every=15)
    with monkeypatch.context() as patched, logging_to(["tensorboard"]):
        interrupted(patched, 24)
        with pytest.raises(Stopped):
            train(config, out=tmp_path / "run")
    with logging_to(["tensorboard"]):
        run = train(config, out=tmp_path / "run")
    found = reader.EventAccumulator(str(run.path / "tensorboard")).Reload().Scalars("train/fvu")
    assert [event.step for event in found] == [10, 20, 30, 40]
    assert [event.value for event in found] == pytest.approx(
        [line["fvu"] for line in lines_of(run).values()]
    )
    assert json.loads((run.path / "metrics.jsonl").read_text().splitlines()[0])["step"] == 10
