"""A run that was moved finds its model, text and store; what has another digest is not taken."""

import json
import shutil

import pytest

from saelab.activations.open_text import text_now
from saelab.config import UsageError
from saelab.lm.recorded import name_now
from saelab.moved import VARIABLE, now_at
from saelab.training.run import Run


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """The current directory is one without anything."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    monkeypatch.delenv(VARIABLE, raising=False)


def test_a_path_is_found_by_its_longest_end_beside_here_or_where_the_variable_says(
    tmp_path, monkeypatch
):
    old = tmp_path / "old" / "texts" / "part.txt"
    assert now_at(old) is None
    new = tmp_path / "new"
    for place in (new / "texts", new / "far"):
        place.mkdir(parents=True)
        (place / "part.txt").touch()
    assert now_at(old, [new]) == new / "texts" / "part.txt"
    monkeypatch.setenv(VARIABLE, f"{tmp_path / 'none'}:{new / 'far'}")
    assert now_at(old) == new / "far" / "part.txt"
    monkeypatch.chdir(new / "texts")
    assert now_at(old) == new / "texts" / "part.txt"
    assert text_now(str(old), []) == str(new / "texts" / "part.txt")
    old.parent.mkdir(parents=True)
    old.touch()
    assert now_at(old) == old


def test_a_text_that_is_nowhere_says_how_to_find_it(tmp_path):
    assert text_now("hf:owner/name", []) == "hf:owner/name"
    with pytest.raises(UsageError, match=r"gone\.txt is not there any more; copy it "):
        text_now(str(tmp_path / "gone.txt"), [])


def checkpoint(path, width=16):
    """What tells a checkpoint from others before it is loaded."""
    path.mkdir()
    (path / "model.safetensors").touch()
    config = {"architectures": ["A"], "hidden_size": width, "layers": 2, "vocab_size": 90}
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_a_renamed_checkpoint_is_found_by_its_sizes_if_only_one_has_them(tmp_path):
    sizes = {"architecture": "A", "d_model": 16, "n_layers": 2, "d_vocab": 90}
    facts = {"name": str(tmp_path / "old"), **sizes}
    assert name_now(facts, [tmp_path]) == facts["name"]
    checkpoint(tmp_path / "wider", 32)
    found = checkpoint(tmp_path / "renamed")
    assert name_now(facts, [tmp_path]) == str(found)
    checkpoint(tmp_path / "another")
    assert name_now(facts, [tmp_path]) == facts["name"]
    there = checkpoint(tmp_path / "old")
    assert name_now(facts, [tmp_path / "empty"]) == str(there)
    assert name_now(facts | {"name": "gpt2"}, [tmp_path]) == "gpt2"


def test_a_moved_store_is_found_by_name_and_taken_by_digest(
    small_run, small_store, tmp_path, monkeypatch
):
    run = Run(shutil.copytree(small_run.path, tmp_path / "place" / "run"))
    assert run.store_path() == small_store.path
    run.options["activations"] = "/gone/" + small_store.path.name
    with pytest.raises(UsageError, match=r"is not there; copy it beside the run, or name .*_PATH"):
        run.store_path()
    moved = tmp_path / small_store.path.name
    moved.mkdir()
    shutil.copy(small_store.path / "manifest.json", moved)
    assert run.store_path() == moved
    assert run.config_now().activations == moved
    monkeypatch.setattr(Run, "provenance", lambda _: {"activations": "another"})
    with pytest.raises(UsageError, match="has other activations"):
        run.store_path()
