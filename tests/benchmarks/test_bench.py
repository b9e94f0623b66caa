"""`saelab bench` runs and reports; its speeds are for people, no test depends on them."""

import json

import pytest
import torch
from benchmarks.planned import checked
from benchmarks.table import TABLES, written
from training.test_together import Launch

from saelab.bench.machine import StepShape
from saelab.bench.scale import gains
from saelab.bench.step import step_config
from saelab.cli import main
from saelab.training.plan import alone_bytes

NAMES = ["harvest", "write, durably", "read shuffled, from disk", "read shuffled, from memory"]


@pytest.mark.slow
def test_the_store_is_compared_with_the_machine(checkpoint, text_file, tmp_path, capsys):
    arguments = ["bench", "store", "--directory", tmp_path, "--mib", 1, "--rounds", 1]
    arguments += ["--model", checkpoint, "--text", text_file, "--n-tokens", 300, "--d-in", 64]
    arguments += ["--sites", "blocks.1.attn.hook_z", "--device", "cpu"]
    arguments += ["--json", tmp_path / "store.json"]
    assert main([str(argument) for argument in arguments]) == 0
    out = capsys.readouterr().out
    results = json.loads((tmp_path / "store.json").read_text())["speeds"]
    assert [result["name"] for result in results] == NAMES
    assert all(r["ratio"] == pytest.approx(r["ours"] / r["limit"]) for r in results)
    assert all(name in out for name in NAMES)
    assert list(tmp_path.glob("saelab-bench-*")) == []


def test_a_step_is_compared_with_the_floor_and_with_plain_torch(tmp_path, capsys):
    page, file = tmp_path / "steps.html", tmp_path / "steps.json"
    arguments = ["bench", "step", "--configs", "8:16:2:4", "--variants", "topk", "batch-topk"]
    arguments += ["--steps", "2", "--device", "cpu", "--figure", str(page)]
    arguments += ["--json", str(file)]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "plotly" in page.read_text(encoding="utf-8")
    assert "batch-topk" in out
    assert "tokens/s" in out
    assert out.splitlines()[-1] == str(file)
    steps = json.loads(file.read_text())["steps"]
    assert [step["variant"] for step in steps] == ["topk", "batch-topk"]
    for step in steps:
        assert step["ratio"] == pytest.approx(step["seconds"] / step["floor"])
        assert step["way"] == "autograd"
        assert step["dense"][0] > 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--configs", "8:16"], "8:16 is not D:M:K"),
        (["--configs", "8:16:0:4"], "8:16:0:4 is not"),
        (["--configs", "8:16:17"], "k=17 exceeds d_sae=16"),
        (["--configs", "1:9999999999999:4:32"], "d_sae: Input should be less than or equal to"),
        (["--configs", "8:16:4:99999999999999"], "A step of 8/16/4 batch 99999999999999 needs at"),
        (["--figure", "."], "--figure . is a directory"),
        (["--json", "/dev/null/x.json"], "/dev/null is no directory"),
        (["--variants", "nope"], "no variant 'nope'"),
        (["--skip"], "--skip is for transcoders"),
        (["--dead", "0.1"], "topk has none: it needs CUDA, not cpu"),
        (["--dead", "0.1", "--variants", "matching-pursuit"], "--dead is for"),
        (["--moments", "bfloat16"], "--moments bfloat16 is for fused steps, and topk has none"),
        (["--transcoder", "--variants", "k-sparse"], "A k-sparse SAE cannot have another"),
    ],
)
def test_a_step_that_cannot_be_is_refused(options, named, capsys):
    assert main(["bench", "step", "--device", "cpu", *options]) == 2
    assert named in capsys.readouterr().err


def test_the_road_is_measured_stage_by_stage_and_a_plan_can_use_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("saelab.bench.road.START", "")
    file, directory = tmp_path / "road.json", tmp_path / "work"
    directory.mkdir()
    arguments = ["bench", "road", "--layers", 2, "--d-model", 64, "--vocabulary", 100]
    arguments += ["--d-sae", 32, "--k", 4, "--batch-size", 128, "--n-tokens", 600]
    arguments += ["--n-train-tokens", 512]
    arguments += ["--context-length", 16, "--n-eval-tokens", 100, "--n-feature-tokens", 400]
    arguments += ["--directory", directory, "--device", "cpu", "--json", file]
    assert main([str(argument) for argument in arguments]) == 0
    assert list(directory.iterdir()) == []
    stages = json.loads(file.read_text())["stages"]
    names = ["start", "harvest", "train", "evaluate", "features"]
    assert [stage["name"] for stage in stages] == names
    assert all(stage["seconds"] > 0 for stage in stages)
    assert all(stage["floor"] > 0 for stage in stages[1:])
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)
    plan = ["plan", "--model", "tiny", "--sites", "blocks.1.hook_resid_post", "--d-sae", "64"]
    assert main([*plan, "--k", "4", "--n-tokens", "10000", "--rates", str(file)]) == 0
    assert "Cheapest that fits" in capsys.readouterr().out


def test_a_live_sweep_is_measured_beside_its_passes_and_steps(tmp_path, capsys):
    file, directory = tmp_path / "live.json", tmp_path / "work"
    directory.mkdir()
    arguments = [
        "bench",
        "live",
        "--layers",
        2,
        "--d-model",
        64,
        "--vocabulary",
        100,
        "--d-sae",
        32,
    ]
    arguments += ["--k", 4, "--batch-size", 64, "--context-length", 16, "--steps", 8]
    arguments += ["--directory", directory, "--device", "cpu", "--json", file]
    assert main([str(argument) for argument in arguments]) == 0
    assert list(directory.iterdir()) == []
    times = json.loads(file.read_text())["times"]
    assert times["n"] == 4
    parts = {name: times[name] for name in ("live", "passes", "steps")}
    assert all(seconds > 0 for seconds in parts.values())
    assert times["ratio"] == parts["live"] / (1.5 * parts["passes"] + parts["steps"])
    assert "4 SAEs, live" in capsys.readouterr().out


def test_a_live_sweep_that_cannot_be_is_refused_before_a_model_is_made(monkeypatch, capsys):
    monkeypatch.setattr("saelab.bench.live.save_random_model", lambda *_, **__: pytest.fail("made"))
    assert main(["bench", "live", "--device", "cpu", "--d-sae", "16", "--k", "32"]) == 2
    assert "k=32 exceeds d_sae=16" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--configs", "x"], "--configs x is not D:M:K"),
        (["--configs", "8:16:17"], "k=17 exceeds d_sae=16"),
        (["--variant", "nope"], "no variant 'nope'"),
        (["--replicas", "3"], "--replicas 3 divides none of --processes 1 2;"),
        (["--replicas", "2", "--configs", "8:16:2:5"], "cannot share out the 5 rows"),
    ],
)
def test_what_no_process_can_measure_is_refused_before_a_launch(
    options, named, monkeypatch, capsys
):
    monkeypatch.setattr("saelab.bench.scale.launch", lambda *_: pytest.fail("launched"))
    assert main(["bench", "scale", "--device", "cpu", *options]) == 2
    assert named in capsys.readouterr().err


SCALE = ["bench", "scale", "--configs", "8:16:2:4", "--steps", "2", "--device", "cpu"]


def test_a_process_of_a_launch_measures_the_step_and_reports(tmp_path, monkeypatch, capsys):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "scale.json"
    assert main([*SCALE, "--json", str(file)]) == 0
    assert capsys.readouterr().out.splitlines() == [str(file)]
    found = json.loads(file.read_text())["steps"]
    assert [(one["kind"], one["d_sae"]) for one in found] == [("strong", 16), ("weak", 16)]
    assert main(SCALE) == 0
    assert "of ideal" in capsys.readouterr().out


def test_what_does_not_fit_in_a_process_is_said_and_left_out(tmp_path, monkeypatch, capsys):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    config = step_config("topk", StepShape(8, 16, 2, 4))
    needed, file = alone_bytes(config, 8, 8, torch.device("cpu")), tmp_path / "scale.json"
    monkeypatch.setattr("saelab.bench.scale.free_on", lambda _: needed - 1)
    assert main([*SCALE, "--json", str(file)]) == 0
    assert json.loads(file.read_text())["steps"] == []
    said = capsys.readouterr().err
    assert said.count("in 1 process does not fit: each needs 210 MB, and 210 MB is free") == 1
    monkeypatch.setattr("saelab.bench.scale.free_on", lambda _: needed)
    assert main([*SCALE, "--json", str(file)]) == 0
    assert len(json.loads(file.read_text())["steps"]) == 2
    assert "does not fit" not in capsys.readouterr().err


@pytest.mark.exhaustive
def test_two_processes_are_measured_together_and_the_first_reports(tmp_path):
    launch = Launch([*SCALE, "--replicas=2", "--json", str(tmp_path / "scale.json")], 2)
    codes, said = launch.end()
    assert codes == [0, 0], said
    found = json.loads((tmp_path / "scale.json").read_text())["steps"]
    names = ("kind", "processes", "replicas", "d_sae", "batch")
    assert [tuple(one[name] for name in names) for one in found] == [
        ("strong", 2, 1, 16, 4),
        ("weak", 2, 1, 32, 4),
        ("strong", 2, 2, 16, 4),
        ("weak", 2, 2, 16, 8),
    ]


def test_speed_ups_are_over_one_process_and_weak_scaling_counts_latents():
    times = {"strong": (4.0, 2.5), "weak": (4.0, 5.0)}
    rows = [
        {"kind": kind, "processes": n, "seconds": size * seconds}
        | {"d_in": size, "d_sae": 6 * (n if kind == "weak" else 1), "k": 2, "batch": 4}
        for size in (1, 3)
        for kind, both in times.items()
        for n, seconds in zip((1, 2), both, strict=True)
    ]
    assert gains(rows) == 2 * [(1.0, 1.0), (1.6, 0.8), (1.0, 1.0), (1.6, 0.8)]
    assert gains(rows[1:2]) == [(None, None)]


def test_speed_ups_of_replicas_are_over_one_process_with_all_rows_or_with_its_own():
    size = {"d_in": 1, "k": 2}
    rows = [
        size | {"kind": kind, "processes": n, "replicas": r, "d_sae": m, "batch": b, "seconds": t}
        for kind, n, r, m, b, t in [
            ("strong", 1, 1, 6, 8, 4.0),
            ("weak", 1, 1, 6, 8, 4.0),
            ("strong", 4, 2, 6, 8, 2.0),
            ("weak", 4, 2, 12, 16, 5.0),
        ]
    ]
    assert gains(rows) == [(1.0, 1.0), (1.0, 1.0), (2.0, 0.5), (3.2, 0.8)]


@pytest.mark.exhaustive
def test_the_scaling_table_starts_its_processes_itself(tmp_path, capsys):
    file = tmp_path / "scale.json"
    assert main([*SCALE, "--processes", "1", "2", "--replicas", "2", "--json", str(file)]) == 0
    found = json.loads(file.read_text())["steps"]
    assert [one["processes"] for one in found] == [1, 1, 2, 2, 2, 2]
    assert [one["replicas"] for one in found] == [1, 1, 1, 1, 2, 2]
    assert "R x N: R replicas" in capsys.readouterr().out


def test_the_pages_hold_what_the_measurements_say():
    for name, (page, make) in TABLES.items():
        assert written(name) == make(), f"{name} in {page.name}: run `make benchmarks`."


def test_plans_are_within_half_of_what_was_measured():
    found = list(checked())
    assert len(found) >= 14
    for one in found:
        assert 1 / 1.5 < one.ratio < 1.5, one
