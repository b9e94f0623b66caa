"""`saelab claims`: the table, its JSON, and bad input."""

import json

import pytest

from saelab.claims.claim import REGISTRY, Claim, register_claim
from saelab.claims.outcome import RANDOM_DIRECTIONS, RANDOM_LATENTS, Outcome, over_seeds
from saelab.cli import main


def measure(setting):
    figure = over_seeds([1.0 + seed for seed in setting.seeds])
    controls = {RANDOM_DIRECTIONS: over_seeds([7.0]), RANDOM_LATENTS: over_seeds([8.0])}
    return Outcome({"a ratio": figure}, {"this": True, "that": False}, controls=controls)


def fail(_):
    raise RuntimeError("there is no such thing")


@pytest.fixture
def claimed(monkeypatch, tmp_path, capsys):
    """Two claims of a notebook, one of which fails; runs the command on them."""
    monkeypatch.setattr(REGISTRY, "registered", {})
    for name, how in (("measures", measure), ("fails", fail)):
        register_claim(Claim(name, "2510.00000", "It measures.", "none", "nothing", how))

    def run(*more):
        arguments = ["claims", "--out", tmp_path / "out", "--device", "cpu", "--seeds", 2, *more]
        code = main([str(argument) for argument in arguments])
        return code, capsys.readouterr()

    return run


def test_the_table_has_the_paper_the_figures_the_controls_and_the_verdict(claimed, tmp_path):
    code, printed = claimed("--only", "measures")
    assert code == 0
    words = " ".join(printed.out.split())
    for shown in ("2510.00000", "a ratio: 1.5", "in part", "random directions 7", "not shown that"):
        assert all(word in words for word in shown.split()), shown
    assert printed.out.splitlines()[-1] == str(tmp_path / "out" / "claims.json")
    (row,) = json.loads((tmp_path / "out" / "claims.json").read_text())["claims"]
    assert row["verdict"] == "in part"


def test_a_failure_is_told_and_the_exit_code_is_1(claimed):
    code, printed = claimed("--only", "fails", "measures", "--json")
    assert code == 1
    values = json.loads(printed.out)
    assert [row["name"] for row in values["claims"]] == ["measures"]
    assert values["failed"] == [{"name": "fails", "error": "RuntimeError: there is no such thing"}]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--only", "no-such-claim"], "There is no claim 'no-such-claim'"),
        (["--only", "measures", "--model", "m", "--text", "t"], "cannot be measured on another"),
        (["--model", "gpt2"], "give --model and --text"),
        (["--seeds", "0"], "seeds"),
        (["--device", "abacus"], "not available"),
    ],
)
def test_bad_input_is_one_sentence(claimed, given, told, tmp_path):
    code, printed = claimed(*given)
    assert code == 2
    assert told in printed.err
    assert len(printed.err.strip().splitlines()) == 1
    assert not (tmp_path / "out" / "outcomes").exists()
