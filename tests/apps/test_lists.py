"""Named lists of latents in the app: written by keys, the palette and the page itself."""

import json
import shutil
from pathlib import Path

import pytest
from apps.driving import Open, drawn
from apps.serving import served
from feature_browser.data.catalogue import read_catalogue
from feature_browser.server.find import hits
from playwright.sync_api import FilePayload, Page, expect

from saelab.analysis.notes import Notes

ODD = "odd <ones>"


@pytest.fixture
def copy(runs: Path, tmp_path: Path) -> Path:
    """A run whose list holds 7, 3 and 5, and the latent 99 that it does not have."""
    shutil.copytree(runs / "signed", tmp_path / "one")
    for latent, comment in ((7, "<b>first</b>"), (3, ""), (5, "last"), (99, "")):
        Notes(tmp_path / "one").write(latent, "list", f"{ODD}\n+\n{comment}")
    return tmp_path


def order(root: Path) -> list[int]:
    return [one.latent for one in Notes(root / "one").lists().get(ODD, ())]


def test_a_list_is_a_table_in_its_order_with_escaped_comments(open_app: Open, copy: Path):
    page = drawn(open_app(copy, run="one", view="lists"))
    rows = page.split("<tbody>")[1].split("<tr>")[1:]
    assert [row.split("latent=")[1].split('"')[0] for row in rows] == ["7", "3", "5"]
    assert "1 numbers are of no latent of this run" in page
    assert "&lt;b&gt;first&lt;/b&gt;" in page
    assert "<b>first" not in page
    assert 'latents=7%2C3%2C5"' in page
    assert "There is no list other" in drawn(open_app(copy, run="one", view="lists", list="other"))


def test_without_lists_the_page_says_how_one_begins(open_app: Open, runs: Path):
    assert "A puts it on a list" in drawn(open_app(runs, run="plain", view="lists"))


def test_a_damaged_file_of_notes_is_told(open_app: Open, copy: Path):
    (copy / "one" / "notes.sqlite").write_bytes(b"damaged, and long enough to be looked at" * 9)
    assert "notes.sqlite cannot be read" in drawn(open_app(copy, run="one", view="lists"))


def test_a_latent_says_which_lists_it_is_on(open_app: Open, copy: Path):
    page = drawn(open_app(copy, run="one", latent="5"))
    assert "on odd &lt;ones&gt;</summary>" in page
    assert ": last " in page
    assert "put it on a list: A" in drawn(open_app(copy, run="one", latent="6"))


def test_the_palette_finds_lists_and_puts_the_latent_in_hand_on_one(copy: Path):
    catalogue = read_catalogue(copy)
    here = catalogue.runs["one"]
    (found,) = (hit for hit in hits(catalogue, here, "odd") if hit["kind"] == "list")
    assert (found["title"], found["about"], found["put"]) == (ODD, "4 latents", "")
    added = [hit["put"] for hit in hits(catalogue, here, "add o", 6) if hit["kind"] == "add"]
    assert added == [ODD, "o"]
    assert not [hit for hit in hits(catalogue, here, "add o") if hit["kind"] == "add"]


def check_columns(page: Page) -> None:
    """The table is saved with what it says, and without its buttons."""
    with page.expect_download() as file:
        page.locator('[data-export="jsonl"]').click()
    row = json.loads(Path(file.value.path()).read_text().splitlines()[0])
    assert (row["Latent"], row["Comment"]) == (3, "mine")
    assert [*row][-2:] == ["Max", "Raises"]


def exported(page: Page) -> list[dict[str, object]]:
    """The rows of the file of all lists."""
    with page.expect_download() as file:
        page.get_by_role("button", name="Lists …").click()
        page.get_by_role("button", name="Export all as JSONL").click()
    return [json.loads(line) for line in Path(file.value.path()).read_text().splitlines()]


def check_import(page: Page, copy: Path) -> None:
    """An import is taken back as one."""
    was = Notes(copy / "one").lists()
    row = json.dumps({"list": ODD, "latent": 11, "comment": "read"}).encode()
    file = FilePayload(name="more.jsonl", mimeType="text/plain", buffer=row)
    page.locator("input[type=file]").set_input_files(file)
    expect(page.get_by_text("1 entries were read from more.jsonl")).to_be_visible()
    expect(page.locator("tbody td:first-child a").last).to_have_text("11")
    page.keyboard.press("Escape")
    page.locator("h1:visible").click()
    page.keyboard.press("Control+z")
    expect(page.get_by_text("The import of 1 entries was taken back")).to_be_visible()
    assert Notes(copy / "one").lists() == was


@pytest.mark.browser
@pytest.mark.slow
def test_a_list_is_made_by_keys_ordered_commented_and_taken_back(page: Page, copy: Path):
    with served(copy) as server:
        page.goto(f"{server.url}/?run=one&latent=9")
        expect(page.locator("h1:visible")).to_have_text("9")
        page.keyboard.press("a")
        page.keyboard.type(ODD)
        page.get_by_label("Comment on latent 9 there").fill("by key")
        page.keyboard.press("Enter")
        expect(page.locator(".listing:visible summary")).to_have_text(f"on {ODD}")
        # The palette knows the latent in hand.
        page.keyboard.press("j")
        expect(page).to_have_url(f"{server.url}/?run=one&latent=10")
        expect(page.locator("h1:visible")).to_have_text("10")
        page.keyboard.press("Control+k")
        page.keyboard.type("add odd <")
        expect(page.locator("[role=option]").first).to_contain_text(f"10 to {ODD}")
        page.keyboard.press("Enter")
        expect(page.locator(".listing:visible summary")).to_have_text(f"on {ODD}")
        page.keyboard.press("Control+z")
        expect(page.locator(".listing:visible summary")).to_have_text("put it on a list: A")
        assert order(copy) == [7, 3, 5, 99, 9]

        page.goto(f"{server.url}/?view=lists&run=one")
        shown = page.locator("tbody td:first-child a")
        page.get_by_label("Move 9 up").click()
        expect(shown).to_have_text(["7", "3", "9", "5"])
        page.get_by_label("Move 7 down").click()
        expect(shown).to_have_text(["3", "7", "9", "5"])
        page.get_by_label("Comment on latent 3").fill("written here")
        page.keyboard.press("Enter")
        page.get_by_label("Take 5 off").click()
        expect(shown).to_have_text(["3", "7", "9"])
        page.keyboard.press("Control+z")
        expect(shown).to_have_text(["3", "7", "9", "5"])
        # Of two who write at once, the later is told what the other wrote.
        Notes(copy / "one").write(3, "list", f"{ODD}\n+\ntheirs")
        page.get_by_label("Comment on latent 3").fill("mine")
        page.keyboard.press("Enter")
        expect(page.get_by_text("somebody else had written “theirs”")).to_be_visible()
        check_columns(page)
        rows = exported(page)
        check_import(page, copy)
    assert [row["latent"] for row in rows] == order(copy)
    assert [row["comment"] for row in rows if row["latent"] in (3, 9)] == ["mine", "by key"]
