"""The scoreboard: every number of an evaluation, with the interval that belongs to it."""

import csv

import numpy as np
import pytest

from saelab.analysis.scoreboard import (
    L0,
    FigureEstimate,
    Scoreboard,
    Tradeoff,
    less_is_better,
    scoreboard,
)
from saelab.drawing import figure
from saelab.formats.json_file import write_sealed_json


@pytest.fixture
def run(tmp_path):
    files = {
        "reconstruction": {"l0": 12.0, "fvu": 0.1, "made": {"n": 3}, "ok": True, "huge": 1e308},
        "probing": {"tasks": [{"task": "a", "accuracy": 0.5}, {"task": "b", "accuracy": 0.9}]},
        "suite": {
            "recovered": 0.8, "recovered_interval": [0.7, 0.9], "part": {"mean": 2, "low": 1,
            "high": 3}, "by_letter": {"a": {"rate": 0.1}, "b": {"rate": 0.3}}, "empty": [],
        },
        "summary": {"seconds": {"x": 1.0}},
    }  # fmt: skip
    for name, values in files.items():
        write_sealed_json(tmp_path / "one" / "evaluation" / f"{name}.json", values)
    return tmp_path / "one"


def test_numbers_are_found_with_the_intervals_that_belong_to_them(run):
    found = scoreboard({"one": run})
    assert found.problems == []
    figures = dict(found.runs["one"])
    mean = figures.pop("probing.tasks.accuracy")
    rate = figures.pop("suite.by_letter.rate")
    assert figures == {
        "reconstruction.l0": FigureEstimate(12.0),
        "reconstruction.fvu": FigureEstimate(0.1),
        "suite.recovered": FigureEstimate(0.8, 0.7, 0.9),
        "suite.part": FigureEstimate(2.0, 1.0, 3.0),
    }
    assert (mean.value, mean.low, mean.high, mean.n) == (pytest.approx(0.7), 0.5, 0.9, 2)
    assert (rate.value, rate.n) == (pytest.approx(0.2), 2)
    assert found.names[:2] == [L0, "reconstruction.fvu"]


def test_of_tasks_it_has_what_papers_report_and_what_it_took(run):
    cost = {"seconds": 2.0, "memory": 30, "n_tokens": 4}
    score = [{"value": n / 10, "low": 0.0, "high": 1.0} for n in range(7)]
    task = {
        "setting": {"seed": 3}, "asked": "x", "clean": {"a": 0.9, "b": 0.7}, "total": score,
        "intended": [0.0] * 7, "unintended": [0.0] * 7, "by_class": {}, "cost": cost,
    }  # fmt: skip
    values = {"tasks": {"topics": task, "a, b": task}}
    write_sealed_json(run / "evaluation" / "task_tpp.json", values)
    found = scoreboard({"one": run}).runs["one"]
    assert {name: one for name, one in found.items() if name.startswith("task")} == {
        "task_tpp.topics": FigureEstimate(0.2, 0.0, 1.0),
        "task_tpp.topics (probes)": FigureEstimate(0.8),
        "task_tpp.a  b": FigureEstimate(0.2, 0.0, 1.0),
        "task_tpp.a  b (probes)": FigureEstimate(0.8),
        "task_tpp.seconds": FigureEstimate(4.0),
        "task_tpp.bytes": FigureEstimate(30.0),
    }


def test_damage_is_told_and_the_rest_is_there(run):
    (run / "evaluation" / "suite.json").write_text("{")
    found = scoreboard({"one": run, "none": run / "nothing"})
    assert "suite.json" in found.problems[0]
    assert found.runs["one"]["reconstruction.fvu"].value == 0.1
    assert found.runs["none"] == {}


def test_the_csv_has_every_number(run):
    rows = list(csv.DictReader(scoreboard({"one": run, "none": run / "no"}).csv().splitlines()))
    assert [row["run"] for row in rows] == ["one", "none"]
    assert float(rows[0]["suite.recovered.high"]) == 0.9
    assert rows[0]["suite.part"] == "2.0"
    assert rows[1]["suite.recovered"] == rows[1]["suite.recovered.low"] == ""


@pytest.mark.parametrize("less", [True, False])
def test_the_front_is_what_no_other_run_beats(less):
    draw = np.random.default_rng(0)
    points = {str(i): tuple(draw.integers(0, 12, 2).astype(float).tolist()) for i in range(40)}
    sign = 1 if less else -1
    found = Tradeoff(
        "x", {r: (FigureEstimate(a), FigureEstimate(b)) for r, (a, b) in points.items()}, less
    )
    best = {
        (a, b)
        for a, b in points.values()
        if not any(c <= a and sign * d <= sign * b and (c, d) != (a, b) for c, d in points.values())
    }
    assert [points[run] for run in found.front] == sorted(best)
    assert len(figure(found).to_dict()["data"][0]["x"]) == len(best)


@pytest.mark.parametrize(("value", "shown"), [(0.05, (0.0, 0.1)), (-2.0, (-4.0, 0.0)), (0.0, None)])
def test_a_single_run_fills_the_picture(value, shown):
    found = Tradeoff("x", {"a": (FigureEstimate(16.0), FigureEstimate(value))}, less=True)
    assert found.figure().layout.yaxis.range == shown


def test_names_say_which_end_is_better():
    less = {
        "task_letters.absorbed in part",
        "task_scr.seconds",
        "reconstruction.fvu",
        "downstream.kl",
        "absorption.absorbed",
        L0,
    }
    more = {"downstream.ce_recovered", "recovery.f1", "probing.tasks.accuracy", "a.kurtosis"}
    assert [less_is_better(name) for name in sorted(less)] == [True] * 6
    assert not any(map(less_is_better, more))
    assert Scoreboard({}).names == []
