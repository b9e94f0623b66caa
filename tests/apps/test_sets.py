"""The page of a set: what was measured of it, and what is still to be done."""

import shutil
from pathlib import Path

import pytest
from apps.driving import Open, drawn

from saelab.evaluation.set_results import AtOnce, MemberFigures, SetEvaluation
from saelab.formats.json_file import write_sealed_json
from saelab.sae.topk import TopKConfig
from saelab.training.config import TrainConfig
from saelab.training.sets import write_set

MODEL = {"name": "tiny", "weights_digest": "w", "tokenizer_digest": "t", "n_layers": 2}


@pytest.fixture
def whole(runs: Path, tmp_path: Path) -> Path:
    """A set of two transcoders, of which one is trained."""
    configs = {
        f"mlp-{layer}": TrainConfig(
            sae=TopKConfig(d_sae=8, k=2), activations=Path("store"), n_tokens=1,
            site=f"blocks.{layer}.mlp.hook_in", target_site=f"blocks.{layer}.hook_mlp_out",
        )
        for layer in range(2)
    }  # fmt: skip
    write_set(tmp_path / "whole", "transcoders", MODEL, configs)
    shutil.copytree(runs / "plain", tmp_path / "whole" / "mlp-0")
    return tmp_path


def test_a_run_of_no_set_says_how_a_set_is_made(open_app: Open):
    page = drawn(open_app(view="set", run="plain"))
    assert "plain belongs to no set" in page
    assert "saelab train sweep" in page


def test_the_bar_names_the_page_for_runs_of_a_set_alone(open_app: Open, whole: Path):
    assert ">Set</a>" in drawn(open_app(whole, view="training", run="whole/mlp-0"))
    assert ">Set</a>" not in drawn(open_app(view="training", run="plain"))


def test_a_set_lists_its_runs_what_is_missing_and_the_command_that_measures(
    open_app: Open, whole: Path
):
    page = drawn(open_app(whole, view="set", run="whole/mlp-0"))
    assert "Not trained yet: mlp-1" in page
    assert f"saelab evaluate {whole}/whole" in page
    assert '<a href="?run=whole%2Fmlp-0">mlp-0</a>' in page
    assert "blocks.1.hook_mlp_out" in page
    assert '<a href="?view=set&amp;run=whole%2Fmlp-0">the set whole</a>' in drawn(
        open_app(whole, view="runs")
    )


def test_what_was_measured_is_shown_and_a_damaged_file_is_told(open_app: Open, whole: Path):
    members = tuple(
        MemberFigures(f"mlp-{layer}", layer, "mlp", 32, 4.0, 0.125, 1, 0.02, None)
        for layer in range(2)
    )
    once = AtOnce("all", 2, 2.5, 3.0, 4.0, 0.875, 0.8, 0.9, 0.95, 0.1, 0.8, 0.0)
    found = SetEvaluation("transcoders", "tiny", 100, 2.0, members, (once,))
    file = whole / "whole" / "evaluation.json"
    write_sealed_json(file, {"made": {}, **found.values()})
    app = open_app(whole, view="set", run="whole/mlp-0")
    page = drawn(app)
    assert "87.5%" in page
    assert "80.0% to 90.0%" in page
    assert '<a href="?run=whole%2Fmlp-0">mlp-0</a>' in page
    assert len(app.get("plotly_chart")) == 1
    file.write_text("{")
    assert "This cannot be shown" in drawn(open_app(whole, view="set", run="whole/mlp-0"))
