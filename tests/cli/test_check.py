"""`saelab check` says what works, and fails where something is wrong."""

import json

import pytest
from lm.architectures import save_architecture

from saelab.cli import main
from saelab.lm.direct import DirectPaths


@pytest.fixture(scope="module")
def parallel(tmp_path_factory):
    return save_architecture(tmp_path_factory.mktemp("check") / "model", "Phi")


def test_a_model_is_checked_and_what_it_lacks_is_told(parallel, capsys):
    assert main(["check", parallel, "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "all hold" in out
    assert "WRONG" not in out
    for line in ("attn.hook_z", "steering with a cache is as without", "logit effects"):
        assert line in out
    assert "has no hook 'blocks.0.hook_resid_mid'" in " ".join(out.split())


def test_the_findings_as_json(parallel, capsys):
    assert main(["check", parallel, "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"]["architecture"] == "PhiForCausalLM"
    assert found["fails"] == 0
    rows = {(row["about"], row["check"]): row for row in found["findings"]}
    effects = rows["mlp.hook_post", "logit effects"]
    assert effects["holds"]
    assert 0 <= effects["error"] <= effects["tolerance"]
    assert rows["hook_resid_mid", "reads"]["error"] is None


def test_a_wrong_formula_fails_the_check(parallel, capsys, monkeypatch):
    right = DirectPaths._probe_end

    def twice(self):
        last, slope, capped = right(self)
        assert slope is not None
        return last, 2 * slope, capped

    monkeypatch.setattr(DirectPaths, "_probe_end", twice)
    assert main(["check", parallel, "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert "WRONG" in out
    assert "checks failed" in out


def test_tokens_are_counted_for_a_run_only(capsys):
    assert main(["check", "tiny", "--n-tokens", "50"]) == 2
    assert "--n-tokens belongs to a run, and tiny is none" in capsys.readouterr().err


def test_a_model_that_cannot_be_loaded_is_bad_input(tmp_path, capsys):
    assert main(["check", str(tmp_path)]) == 2
    assert "without a config.json" in capsys.readouterr().err
