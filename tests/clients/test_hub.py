"""Files come from the hub whole and of one commit, or a sentence says why not."""

import hashlib
import time

import pytest
from hub_stub import COMMIT, Hub, serving
from huggingface_hub import constants
from sae.interop.cases import refusal

from saelab.clients.hub import fetch, listed

BYTES = hashlib.sha256(b"weights").digest() * 2000
WEIGHTS = "x/params.npz"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with one repository, and an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with serving(Hub({f"a/b/{WEIGHTS}": BYTES, "a/b/x/config.json": b"{}"})) as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
        template = served.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield served


def kept(tmp_path):
    """The files that the cache has under a name."""
    return sorted(p.name for p in (tmp_path / "cache").rglob("snapshots/*/**/*") if p.is_file())


def test_files_are_fetched_once_and_pinned_by_their_commit(hub, tmp_path):
    found = fetch("a/b", [WEIGHTS], optional=["x/config.json", "x/none.json"])
    assert (found.folder / WEIGHTS).read_bytes() == BYTES
    assert found.commit == COMMIT
    assert kept(tmp_path) == ["config.json", "params.npz"]
    bodies = hub.asked.count(f"GET /a/b/resolve/main/{WEIGHTS}")
    fetch("a/b", [WEIGHTS])
    assert hub.asked.count(f"GET /a/b/resolve/main/{WEIGHTS}") == bodies == 1
    hub.asked.clear()
    # What is pinned needs no hub.
    fetch("a/b", [WEIGHTS], revision=COMMIT)
    assert not hub.asked


def test_a_connection_that_breaks_is_continued_where_it_broke(hub):
    hub.cuts = [5000, len(BYTES)]
    assert (fetch("a/b", [WEIGHTS]).folder / WEIGHTS).read_bytes() == BYTES
    assert hub.ranges == ["bytes=5000-"]


def test_of_a_file_that_never_arrives_nothing_is_left(hub, tmp_path):
    hub.cuts = [5000, 0]
    assert "the same command tries again" in refusal(lambda: fetch("a/b", [WEIGHTS]))
    assert kept(tmp_path) == []
    hub.cuts.clear()
    assert (fetch("a/b", [WEIGHTS]).folder / WEIGHTS).read_bytes() == BYTES


def test_other_bytes_than_the_hub_named_are_removed(hub, tmp_path):
    hub.lies.add(f"a/b/{WEIGHTS}")
    assert "arrived with other bytes" in refusal(lambda: fetch("a/b", [WEIGHTS]))
    assert kept(tmp_path) == []
    hub.lies.clear()
    assert (fetch("a/b", [WEIGHTS]).folder / WEIGHTS).read_bytes() == BYTES


@pytest.mark.parametrize(
    ("repo", "file", "words"),
    [
        ("a/b", "x/gone.npz", "a/b has no file x/gone.npz."),
        ("a/c", WEIGHTS, "There is no repository a/c"),
        ("a/b/c", WEIGHTS, "'a/b/c' is no name of a repository"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_what_does_not_exist_is_named(repo, file, words):
    assert words in refusal(lambda: fetch(repo, [file]))


@pytest.mark.parametrize(
    ("status", "words"),
    [(429, "refuses more requests for 30 s"), (503, "answered 503"), (500, "answered 500")],
)
def test_a_hub_that_refuses_is_told(status, words, hub, tmp_path):
    hub.status = status
    assert words in refusal(lambda: fetch("a/b", [WEIGHTS]))
    assert words in refusal(lambda: listed("a/b", "x"))
    assert kept(tmp_path) == []


def test_without_a_network_what_is_there_still_counts(hub, monkeypatch):
    fetch("a/b", ["x/config.json"])
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    assert fetch("a/b", ["x/config.json"]).commit == COMMIT
    assert "127.0.0.1:9 cannot be reached" in refusal(lambda: fetch("a/b", [WEIGHTS]))


def test_offline_nothing_is_asked(hub, monkeypatch):
    fetch("a/b", ["x/config.json"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    assert fetch("a/b", ["x/config.json"]).commit == COMMIT
    assert listed("a/b", "x") == {"x/config.json": 2}
    assert "HF_HUB_OFFLINE forbids" in refusal(lambda: fetch("a/b", [WEIGHTS]))
    assert "HF_HUB_OFFLINE forbids" in refusal(lambda: listed("a/b", "y"))
    assert not hub.asked


def test_a_folder_is_listed(hub):
    hub.files["a/b/x/checkpoints/final.safetensors"] = b"1"
    assert listed("a/b", "x") == {WEIGHTS: len(BYTES), "x/config.json": 2}
    assert "has no file or folder of that name" in refusal(lambda: listed("a/b", "y"))
