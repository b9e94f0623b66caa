"""A model and its SAEs stay loaded between questions about the same runs."""

from pathlib import Path

import pytest

from saelab.analysis.circuits.explain import CircuitOptions
from saelab.analysis.circuits.graph_json import load_graph
from saelab.analysis.circuits.session import Session, usable_runs
from saelab.config import UsageError
from saelab.console import heard_by

OPTIONS = CircuitOptions(max_nodes=8, n_members=0, n_attention=0, n_interventions=0)


def test_the_second_question_loads_nothing_and_each_is_saved(small_run, tmp_path: Path):
    import shutil

    run = Path(shutil.copytree(small_run.path, tmp_path / "run"))
    session, heard = Session("cpu"), []
    with heard_by(heard.append):
        _, first = session.explain([run], "the big cat sat on", OPTIONS)
        assert [step.title for step in heard][:3] == [
            "Load the language model", "Load the SAE", "Read the prompt",
        ]  # fmt: skip
        lm, hosts = session.loaded(usable_runs([run]))
        heard.clear()
        _, second = session.explain([run], "the red cat sat on", OPTIONS)
    assert "Load the language model" not in [step.title for step in heard]
    again = session.loaded(usable_runs([run]))
    assert again[0] is lm
    assert again[1][0] is hosts[0]
    assert first != second
    assert load_graph(first).facts["prompt"] == "the big cat sat on"
    assert load_graph(second).facts["prompt"] == "the red cat sat on"
    (run / "weights.safetensors").touch()
    assert session.loaded(usable_runs([run]))[1][0] is not hosts[0]


def test_runs_that_have_no_circuit_are_refused(small_run, tmp_path: Path):
    with pytest.raises(UsageError, match="given twice"):
        usable_runs([small_run.path, small_run.path])
    with pytest.raises(UsageError, match="is not a run"):
        usable_runs([tmp_path])
