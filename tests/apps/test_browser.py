import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from feature_browser.launch import streamlit_arguments
from playwright.sync_api import Browser, Page, expect, sync_playwright

pytestmark = [pytest.mark.browser, pytest.mark.slow]

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
]
PATIENCE_MS = 60_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        message = f"None of {', '.join(NAMES)} is installed."
        if os.environ.get("REQUIRE_BROWSER") == "1":
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(runs: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", *streamlit_arguments(runs, port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        wait_for(f"http://127.0.0.1:{port}/_stcore/health", process)
        yield f"http://127.0.0.1:{port}"
        process.terminate()


def wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    pytest.fail(f"{url} does not answer")


@pytest.fixture
def errors() -> list[str]:
    """What the page complained about."""
    return []


@pytest.fixture
def page(browser: Browser, errors: list[str]) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1440, "height": 940})
    page.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    yield page
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_deep_link_opens_in_either_theme_without_a_complaint(
    page: Page, server: str, errors: list[str], scheme: str
):
    page.emulate_media(color_scheme=scheme)  # pyright: ignore[reportArgumentType]
    page.goto(f"{server}/?run=signed&latent=5")
    expect(page.locator(".example").first).to_be_visible()
    expect(page.locator("h1")).to_have_text("5")
    expect(page.get_by_test_id("stException")).to_have_count(0)
    ink = page.locator("h1").evaluate("e => getComputedStyle(e).color")
    assert ink == {"light": "rgb(28, 29, 31)", "dark": "rgb(232, 232, 228)"}[scheme]
    assert errors == []


def test_next_changes_the_latent_and_the_address_and_survives_a_reload(page: Page, server: str):
    page.goto(f"{server}/?run=signed&latent=5")
    page.get_by_role("button", name="Next").click()
    expect(page.locator("h1")).to_have_text("6")
    assert page.url.endswith("?run=signed&latent=6")
    page.reload()
    expect(page.locator("h1")).to_have_text("6")


def test_the_keys_walk_through_the_latents(page: Page, server: str):
    page.goto(f"{server}/?run=signed&latent=5")
    expect(page.locator("h1")).to_have_text("5")
    page.keyboard.type("jjjjjk")
    expect(page.locator("h1")).to_have_text("9")
    expect(page).to_have_url(f"{server}/?run=signed&latent=9")
    page.keyboard.press("g")
    page.keyboard.type("12\n")
    expect(page.locator("h1")).to_have_text("12")


def test_a_link_in_the_page_is_followed_without_a_new_session(page: Page, server: str):
    page.goto(f"{server}/?run=signed&latent=5")
    expect(page.locator(".example").first).to_be_visible()
    page.evaluate("window.same = true")
    page.locator("a.neighbour").first.click()
    expect(page.locator("h1")).to_have_text("6")
    assert page.evaluate("window.same")
    page.go_back()
    expect(page.locator("h1")).to_have_text("5")


def test_a_range_dragged_on_the_histogram_hides_the_other_examples(page: Page, server: str):
    page.goto(f"{server}/?run=signed&latent=5")
    expect(page.locator(".example").first).to_be_visible()
    histogram = page.locator(".histogram")
    box = histogram.bounding_box()
    assert box is not None
    # hover waits until the picture has stopped moving.
    y = box["height"] / 2
    histogram.hover(position={"x": 0.75 * box["width"], "y": y})
    page.mouse.down()
    histogram.hover(position={"x": box["width"] - 2, "y": y})
    page.mouse.up()
    expect(page.locator(".hidden-count").first).to_contain_text("hidden by filter")
    # Negative firings lie left of zero, all outside the range.
    negative = page.locator('.examples[data-kind="negative"] .example:not([hidden])')
    expect(negative).to_have_count(0)
    kept = page.locator('.examples[data-kind="top"] .example:not([hidden])')
    expect(kept.first).to_be_visible()


VIEWS = ["runs", "latents", "known", "training", "steering", "health", "compare"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_every_view_opens_without_a_complaint_and_fits_the_window(
    page: Page, server: str, errors: list[str], view: str, scheme: str
):
    page.emulate_media(color_scheme=scheme)  # pyright: ignore[reportArgumentType]
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(f"{server}/?run=signed&view={view}")
    expect(page.locator("table, article, section.card").first).to_be_visible()
    if view in {"known", "training"}:
        expect(page.locator(".js-plotly-plot").first).to_be_visible()
    expect(page.get_by_test_id("stException")).to_have_count(0)
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    assert errors == []


def test_a_mark_of_the_scores_leads_to_its_latent_and_back(page: Page, server: str):
    page.goto(f"{server}/?run=signed&view=steering&sort=rank")
    page.locator("a.mark[href*='latent=9']").first.click()
    # Streamlit takes the old view away a moment after it has drawn the new one.
    expect(page.locator(".page.latent h1")).to_have_text("9")
    page.go_back()
    title = page.locator("h1.headline", has_text="make the model say what they promise")
    expect(title).to_be_visible()


def test_filters_and_pages_of_the_scores_are_followed_in_place(page: Page, server: str):
    page.goto(f"{server}/?run=signed&view=steering")
    page.evaluate("window.same = true")
    page.get_by_role("link", name="both", exact=True).click()
    expect(page.locator("p.summary")).to_contain_text("hidden by filter: 46")
    page.get_by_role("link", name="show all").click()
    page.get_by_label("Pages").get_by_role("link", name="2").click()
    expect(page).to_have_url(f"{server}/?view=steering&run=signed&page=2")
    assert page.evaluate("window.same")


def test_two_runs_are_compared_by_following_links(page: Page, server: str, errors: list[str]):
    page.goto(f"{server}/?run=signed&view=compare")
    page.get_by_role("link", name="plain", exact=True).click()
    expect(page.locator("h1")).to_have_text("signed against plain")
    page.get_by_role("link", name="swap the two").click()
    expect(page.locator("h1")).to_have_text("plain against signed")
    assert errors == []
