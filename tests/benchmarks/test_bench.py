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
