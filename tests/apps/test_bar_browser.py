"""The bar's keys and dialogs, taking edits back, and saved tables, in headless Chromium."""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from apps.serving import PATIENCE_S, listen, served
from apps.test_browser import violations
from playwright.sync_api import BrowserContext, Page, expect

from saelab.analysis.notes import Notes

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def root(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies to write into."""
    root = tmp_path_factory.mktemp("bar")
    for name in ("plain", "signed"):
        shutil.copytree(runs / name, root / name)
    return root


@pytest.fixture(scope="module")
def url(root: Path) -> Iterator[str]:
    with served(root) as server:
        yield server.url


@pytest.fixture
def page(profile: BrowserContext) -> Iterator[Page]:
    page = profile.new_page()
    page.set_default_timeout(60_000)
    expect.set_options(timeout=1000 * PATIENCE_S)
    errors = listen(page)
    yield page
    page.close()
    assert errors == []


def test_keys_find_a_run_walk_the_runs_and_explain_themselves(page: Page, url: str):
    page.goto(f"{url}/?run=signed&latent=5")
    expect(page.locator("h1:visible")).to_have_text("5")
    page.keyboard.press("Control+k")
    expect(page.locator("dialog.palette [role=option]").first).to_be_visible()
    assert violations(page) == []
    page.keyboard.type("plain")
    expect(page.locator("[role=option][aria-selected=true]")).to_contain_text("plain")
    page.keyboard.press("Enter")
    expect(page.locator("h1.headline:visible")).to_have_text("plain")
    expect(page.locator("dialog[open]")).to_have_count(0)
    page.keyboard.press("]")
    expect(page.locator("h1.headline:visible")).to_have_text("signed")
    page.keyboard.press("?")
    expect(page.locator("dialog.help")).to_be_visible()
    assert violations(page) == []
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("12")
    page.keyboard.press("Enter")
    expect(page.locator("h1:visible")).to_have_text("12")


def test_a_label_is_taken_back_by_its_key_and_restored_from_its_history(
    page: Page, url: str, root: Path
):
    page.goto(f"{url}/?run=signed&latent=6")
    label = page.get_by_label("Label of latent 6")
    label.fill("Bridges")
    label.press("Enter")
    expect(page).to_have_title("6 · Bridges · saelab")
    page.keyboard.press("Control+z")
    expect(page.locator(".notice")).to_contain_text("label of latent 6 was taken back")
    assert Notes(root / "signed").all() == {}
    page.locator("summary:visible", has_text="note").click()
    page.get_by_role("button", name="restore").click()
    expect(page).to_have_title("6 · Bridges · saelab")
    assert Notes(root / "signed").all()[6].label == "Bridges"


def test_the_rows_of_a_table_are_saved_as_csv_and_as_json_lines(page: Page, url: str):
    page.goto(f"{url}/?run=signed&view=latents")
    expect(page.locator("table").first).to_be_visible()
    saved = {}
    for form in ("CSV", "JSONL"):
        with page.expect_download() as download:
            page.get_by_role("button", name=form, exact=True).first.click()
        saved[form] = Path(download.value.path()).read_text()
    rows = list(csv.DictReader(saved["CSV"].splitlines()))
    assert sorted(int(row["Latent"]) for row in rows) == list(range(31))
    lines = [json.loads(line) for line in saved["JSONL"].splitlines()]
    assert [line["Latent"] for line in lines] == [int(row["Latent"]) for row in rows]
    assert all(isinstance(line["Max"], float | int) for line in lines)


def test_tokens_and_the_histograms_range_are_reached_by_keys(page: Page, url: str):
    page.goto(f"{url}/?run=plain&latent=5")
    line = page.locator(".example .text:visible").first
    line.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".tip")).to_contain_text("of its maximum")
    first = page.locator(".walked").text_content()
    assert first
    page.keyboard.press("ArrowDown")
    expect(page.locator(".tip")).to_have_count(0)
    page.locator(".histogram:visible").focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    counted = page.locator(".hidden-count:visible").first
    expect(counted).to_contain_text("hidden by filter")
    assert violations(page) == []
    page.keyboard.press("Escape")
    expect(page.locator(".hidden-count", has_text="hidden by filter")).to_have_count(0)
