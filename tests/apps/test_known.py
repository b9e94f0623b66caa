"""Known features of the texts on which a run was evaluated, one at a time."""

import json
import shutil
from pathlib import Path

import pytest
from apps.driving import Open, drawn


@pytest.fixture
def two_texts(runs: Path, tmp_path: Path) -> Path:
    """A run with labels on its own text, and with others on another."""
    shutil.copytree(runs / "signed", tmp_path / "signed")
    here = tmp_path / "signed" / "evaluation"
    values = json.loads((here / "recovery.json").read_text())
    values["features"][0]["label"] = "person"
    values["features"][0]["description"] = "Part of a <name>."
    values["latents"]["label"] = ["person" for _ in values["latents"]["label"]]
    (here / "books-0123abcd").mkdir()
    (here / "books-0123abcd" / "recovery.json").write_text(json.dumps(values))
    return tmp_path


def test_each_text_is_shown_with_links_to_the_others(open_app: Open, two_texts: Path):
    own = drawn(open_app(two_texts, run="signed", view="known"))
    assert "pending female" in own
    assert "text=books-0123abcd" in own
    other = drawn(open_app(two_texts, run="signed", view="known", text="books-0123abcd"))
    assert "person" in other
    assert "Part of a &lt;name&gt;." in other
    assert "pending female" not in other


@pytest.mark.parametrize("text", ["../../plain", "nothing", ".."])
def test_a_text_that_is_not_there_falls_back_to_the_runs_own(open_app: Open, two_texts, text):
    assert "pending female" in drawn(open_app(two_texts, run="signed", view="known", text=text))


def test_without_labels_of_its_own_a_run_shows_those_of_the_other_text(
    open_app: Open, two_texts: Path
):
    (two_texts / "signed" / "evaluation" / "recovery.json").unlink()
    assert "person" in drawn(open_app(two_texts, run="signed", view="known"))
    assert "person" in drawn(open_app(two_texts, run="signed", latent="5"))
