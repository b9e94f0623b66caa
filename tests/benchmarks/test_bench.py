"""`saelab bench` runs and reports; its speeds are for people, no test depends on them."""

import json

import pytest

from saelab.cli import main

NAMES = ["harvest", "write, durably", "read shuffled, from disk", "read shuffled, from memory"]


@pytest.mark.slow
@pytest.mark.parametrize("json_option", [[], ["--json"]])
def test_the_store_is_compared_with_the_machine(
    checkpoint, text_file, tmp_path, capsys, json_option
):
    arguments = ["bench", "store", "--directory", tmp_path, "--mib", 1, "--rounds", 1]
    arguments += ["--model", checkpoint, "--text", text_file, "--n-tokens", 300, "--d-in", 64]
    arguments += ["--sites", "blocks.1.attn.hook_z", "--device", "cpu", *json_option]
    assert main([str(argument) for argument in arguments]) == 0
    out = capsys.readouterr().out
    if json_option:
        results = json.loads(out)
        assert [result["name"] for result in results] == NAMES
        assert all(r["ratio"] == pytest.approx(r["ours"] / r["limit"]) for r in results)
    else:
        assert all(name in out for name in NAMES)
    assert list(tmp_path.glob("saelab-bench-*")) == []


@pytest.mark.parametrize("json_option", [[], ["--json"]])
def test_a_step_is_compared_with_the_floor_and_with_plain_torch(tmp_path, capsys, json_option):
    page = tmp_path / "steps.html"
    arguments = ["bench", "step", "--configs", "8:16:2:4", "--variants", "topk", "batch-topk"]
    arguments += ["--steps", "2", "--device", "cpu", "--figure", str(page), *json_option]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "plotly" in page.read_text(encoding="utf-8")
    if not json_option:
        assert "batch-topk" in out
        assert "tokens/s" in out
        return
    steps = json.loads(out)["steps"]
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
        (["--variants", "nope"], "no variant 'nope'"),
        (["--skip"], "--skip is for transcoders"),
        (["--transcoder", "--variants", "k-sparse"], "A k-sparse SAE cannot have another"),
    ],
)
def test_a_step_that_cannot_be_is_refused(options, named, capsys):
    assert main(["bench", "step", "--device", "cpu", *options]) == 2
    assert named in capsys.readouterr().err
