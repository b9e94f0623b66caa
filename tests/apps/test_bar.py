"""The bar of every page: the run, its neighbours, the state of the model, and the palette."""

import gc
import shutil
import socket
import threading
from pathlib import Path

import pytest
from apps.driving import Open, drawn
from feature_browser.data.catalogue import read_catalogue
from feature_browser.live import model, warm
from feature_browser.live.warm import Warmth
from feature_browser.server.find import hits
from feature_browser.shell.opening import open_when_it_answers

from saelab.analysis.notes import Notes
from saelab.cli.browse import has_screen


def test_it_leads_to_the_same_page_of_the_runs_beside_it_in_a_ring(open_app: Open):
    names = sorted(["bare", "plain", "signed"])
    for at, name in enumerate(names):
        bar = drawn(open_app(run=name, view="training"))
        for key, by in (("[", -1), ("]", 1)):
            there = names[(at + by) % len(names)]
            assert f'data-key="{key}" href="?view=training&amp;run={there}"' in bar


def test_an_address_without_anything_is_a_welcome_with_latents_worth_a_look(open_app: Open):
    page = drawn(open_app())
    assert "What the pages answer" in page
    assert page.count('<p class="why">') == 5


def test_the_welcome_to_a_run_without_features_says_how_to_collect_them(open_app: Open):
    assert "saelab features" in drawn(open_app(run="bare", view="welcome"))


def test_the_palette_finds_a_number_a_page_a_run_and_words_of_every_run(runs: Path, tmp_path: Path):
    for name in ("plain", "signed"):
        shutil.copytree(runs / name, tmp_path / name)
    Notes(tmp_path / "plain").write(7, "label", "Bridges in <Paris>")
    catalogue = read_catalogue(tmp_path)
    here = catalogue.runs["signed"]

    def found(text: str) -> list[tuple[str, str]]:
        return [(hit["kind"], hit["href"]) for hit in hits(catalogue, here, text)]

    assert found("5")[0] == ("latent", "?run=signed&latent=5")
    assert ("latent", "?run=signed&latent=32") not in found("32")
    assert found("healt")[0] == ("page", "?view=health&run=signed")
    assert ("run", "?view=welcome&run=plain") in found("plai")
    assert ("latent", "?run=plain&latent=7") in found("in  <paris")
    # Words of the run that is open come first.
    assert found("pending female")[0] == ("latent", "?run=signed&latent=5")
    assert ("search", "?view=latents&run=signed&q=word9") in found(" word9")
    assert found("")[0][0] == "page"


@pytest.fixture
def warmth(monkeypatch: pytest.MonkeyPatch) -> Warmth:
    """A server's start of its own."""
    fresh = Warmth()
    monkeypatch.setattr(warm, "WARMTH", fresh)
    return fresh


def test_the_first_runs_model_is_loaded_in_one_thread_and_its_state_is_told(
    warmth: Warmth, live_runs: Path
):
    card = read_catalogue(live_runs).first
    assert card is not None
    loading, go_on, told = threading.Event(), threading.Event(), []

    def load(found: object) -> None:
        told.append(found)
        loading.set()
        go_on.wait(timeout=30)

    warm.begin(lambda: card, load)
    assert loading.wait(timeout=60)
    assert warmth.imported.is_set()
    assert not warmth.done.is_set()
    assert warmth.said_of(card.model, loaded=False)[0] == "loading"
    assert warmth.said_of("another", loaded=False)[0] == "not loaded"
    assert gc.get_freeze_count() > 10_000
    go_on.set()
    assert warmth.done.wait(timeout=30)
    assert told == [card]
    assert warmth.said_of(card.model, loaded=True)[0] == "ready"


def test_a_model_that_is_not_here_or_too_large_waits_for_a_page(
    warmth: Warmth, runs: Path, live_runs: Path, monkeypatch: pytest.MonkeyPatch
):
    there, large = read_catalogue(runs).runs["plain"], read_catalogue(live_runs).first
    assert large is not None
    monkeypatch.setattr("saelab.resources.free_memory", lambda: 1)
    for card in (None, large, there):
        warm.begin(lambda card=card: card, lambda card: pytest.fail(f"{card} was loaded"))
        assert warmth.done.wait(timeout=60)
        assert warmth.said_of("any", loaded=False)[0] == "not loaded"


def test_a_damaged_model_is_told_and_leaves_the_pages_as_they_are(
    warmth: Warmth, live_runs: Path, tmp_path: Path
):
    shutil.copytree(live_runs / "topk", tmp_path / "topk")
    (tmp_path / "topk" / "weights.safetensors").write_bytes(b"no")
    card = read_catalogue(tmp_path).first
    assert card is not None
    warm.begin(lambda: card, model.load)
    assert warmth.done.wait(timeout=60)
    state, says = warmth.said_of(card.model, loaded=False)
    assert state == "failed"
    assert "weights.safetensors" in says


@pytest.mark.parametrize(
    ("environment", "platform", "seen"),
    [
        ({"DISPLAY": ":0"}, "linux", True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux", True),
        ({}, "linux", False),
        ({}, "darwin", True),
        ({"CI": "1", "DISPLAY": ":0"}, "linux", False),
        ({"SSH_CONNECTION": "a 1 b 2"}, "darwin", False),
    ],
)
def test_a_browser_is_opened_only_where_it_would_be_seen(
    environment: dict[str, str], platform: str, *, seen: bool
):
    assert has_screen(environment, platform) is seen


def test_the_page_is_opened_once_the_server_takes_connections():
    shown: list[str] = []
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        opening = threading.Thread(target=open_when_it_answers, args=(url, shown.append))
        opening.start()
        assert shown == []
        server.listen()
        opening.join(timeout=30)
    assert shown == [url]


def test_four_latents_of_any_run_stand_side_by_side_and_others_are_told(open_app: Open):
    there = "5, plain:7,99, gone:3, 8,9, 10"
    page = drawn(open_app(run="signed", view="beside", latents=there))
    assert page.count("take away") == 4
    assert "There is no latent 99; signed has 0 to 31." in page
    assert "There is no run gone." in page
    assert "4 are shown, 1 are not: 10." in page
    assert 'href="?run=plain&amp;latent=7"' in page
    assert 'href="?view=beside&amp;run=signed&amp;latents=plain%3A7%2C8%2C9"' in page


def test_the_latent_in_hand_stands_there_and_its_neighbours_are_offered(open_app: Open):
    page = drawn(open_app(run="signed", view="beside", latent="5"))
    assert page.count("take away") == 1
    assert 'href="?run=signed&amp;latent=5"' in page
    assert "latents=5%2C6&amp;latent=5" in page
