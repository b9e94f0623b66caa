"""A page is one file and one line in the list; it has an address of its own."""

from pathlib import Path

import numpy as np
import pytest
from apps.driving import Open, drawn
from contributing import PAGE
from feature_browser import pages
from feature_browser.data.address import parsed

from saelab.formats.hdf5_file import read_hdf5

TOY = """
from dataclasses import dataclass

from feature_browser.data.address import AbstractAddress, one_of
from feature_browser.draw.markup import html
from feature_browser.shell.canvas import show
from feature_browser.pages import Page

WORDS = ("morning", "evening")


@dataclass(frozen=True, kw_only=True)
class ToyAddress(AbstractAddress):
    view = "toy"
    word: str = one_of(*WORDS)
    pet: str = one_of("cat", "dog", stays=True)


def toy_view(catalogue, card, address):
    there = address.to(word="evening").href
    text = "Good {word}, {pet} of {run}: <a href='{there}'>later</a>"
    show(html(text, word=address.word, pet=address.pet, run=card.name, there=there), "toy")


PAGE = Page("A toy", ToyAddress, toy_view)
"""


def added(code: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The app with one file and one line more; the page's address."""
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setattr(pages, "__path__", [*pages.__path__, str(tmp_path)])
    monkeypatch.setattr(pages, "MODULES", [*pages.MODULES, name])
    return pages.pages()[name].address


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    return added(TOY, "toy", tmp_path, monkeypatch)


@pytest.fixture
def rare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    return added(PAGE, "rare", tmp_path, monkeypatch)


def test_contributings_page_reads_its_address_and_lists_what_a_table_of_features_has(
    open_app: Open, runs: Path, rare
):
    fired = read_hdf5(runs / "signed" / "features.h5")["latent/n_fired"]
    for most in (10, 1000):
        page = drawn(open_app(view="rare", run="signed", most=str(most)))
        found = np.flatnonzero((fired > 0) & (fired <= most))
        assert f"{len(found)} rare latents" in page
        assert all(f"latent={i}" in page for i in found)
        assert "?view=rare&amp;run=signed&amp;most=100" in page


def test_a_page_of_one_file_is_in_the_bar_and_reads_its_own_address(open_app: Open, toy):
    assert 'href="?view=toy&amp;run=signed">A toy</a>' in drawn(open_app(run="signed", view="runs"))
    page = drawn(open_app(view="toy", run="signed"))
    assert "Good morning, cat of signed" in page
    assert "?view=toy&amp;run=signed&amp;word=evening" in page
    assert "Good evening, dog" in drawn(
        open_app(view="toy", run="signed", word="evening", pet="dog")
    )
    assert "Good morning, cat" in drawn(open_app(view="toy", run="signed", word="noon", pet="ox"))


def test_other_pages_take_along_what_stays_of_it_and_nothing_else(open_app: Open, toy):
    here = toy.of({"run": "signed", "word": "evening", "pet": "dog"})
    away = parsed(here.visit("training"))
    assert away == {"view": "training", "run": "signed", "pet": "dog"}
    assert "?view=toy&amp;run=signed&amp;pet=dog" in drawn(open_app(**away))


def test_without_its_line_the_page_is_not_there(open_app: Open):
    assert "toy" not in pages.pages()
    assert "Good morning" not in drawn(open_app(view="toy", run="signed"))
