"""A page is one file and one line in the list; it has an address of its own."""

from pathlib import Path

import pytest
from apps.driving import Open, drawn
from feature_browser import pages
from feature_browser.data.address import parsed

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


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The app with one file and one line more."""
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.setattr(pages, "__path__", [*pages.__path__, str(tmp_path)])
    monkeypatch.setattr(pages, "MODULES", [*pages.MODULES, "toy"])
    return pages.pages()["toy"].address


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
