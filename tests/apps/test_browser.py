import re
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from feature_browser.draw.tokens import visible
from feature_browser.pages import pages
from playwright.sync_api import Browser, Dialog, Page, Route, expect

from saelab.analysis.records import Features

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_deep_link_opens_in_either_theme_without_a_complaint(
    page: Page, server: str, errors: list[str], scheme: str
):
    page.emulate_media(color_scheme=scheme)  # pyrefly: ignore[bad-argument-type]
    page.goto(f"{server}/?run=signed&latent=5")
    expect(page.locator(".example:visible").first).to_be_visible()
    expect(page.locator("h1:visible")).to_have_text("5")
    expect(page.get_by_test_id("stException")).to_have_count(0)
    ink = page.locator("h1:visible").evaluate("e => getComputedStyle(e).color")
    assert ink == {"light": "rgb(28, 29, 31)", "dark": "rgb(232, 232, 228)"}[scheme]
    assert errors == []


def test_next_changes_the_latent_and_the_address_and_survives_a_reload(page: Page, server: str):
    page.goto(f"{server}/?run=signed&latent=5")
    page.get_by_role("button", name="Next").click()
    expect(page.locator("h1:visible")).to_have_text("6")
    expect(page).to_have_url(f"{server}/?run=signed&latent=6")
    page.reload()
    expect(page.locator("h1:visible")).to_have_text("6")


def test_the_keys_walk_through_the_latents(page: Page, server: str):
    page.goto(f"{server}/?run=signed&latent=5")
    expect(page.locator("h1:visible")).to_have_text("5")
    page.keyboard.type("jjjjjk")
    expect(page.locator("h1:visible")).to_have_text("9")
    expect(page).to_have_url(f"{server}/?run=signed&latent=9")
    page.keyboard.press("g")
    page.keyboard.type("12\n")
    expect(page.locator("h1:visible")).to_have_text("12")
    page.keyboard.press("j")
    expect(page.locator("h1:visible")).to_have_text("13")


def test_a_link_in_the_page_is_followed_without_a_new_session(page: Page, server: str):
    page.goto(f"{server}/?run=signed&latent=5")
    expect(page.locator(".example:visible").first).to_be_visible()
    page.evaluate("window.same = true")
    page.locator("a.neighbour:visible").first.click()
    expect(page.locator("h1:visible")).to_have_text("6")
    expect(page).to_have_url(f"{server}/?run=signed&latent=6")
    assert page.evaluate("window.same")
    page.go_back()
    expect(page.locator("h1:visible")).to_have_text("5")


def test_a_range_dragged_on_the_histogram_hides_the_other_examples(page: Page, server: str):
    page.goto(f"{server}/?run=signed&latent=5")
    expect(page.locator(".example:visible").first).to_be_visible()
    histogram = page.locator(".histogram:visible")
    box = histogram.bounding_box()
    assert box is not None
    # hover waits until the picture has stopped moving.
    y = box["height"] / 2
    histogram.hover(position={"x": 0.75 * box["width"], "y": y})
    page.mouse.down()
    histogram.hover(position={"x": box["width"] - 2, "y": y})
    page.mouse.up()
    expect(page.locator(".hidden-count:visible").first).to_contain_text("hidden by filter")
    # Negative firings lie left of zero, all outside the range.
    negative = page.locator('.examples[data-kind="negative"] .example:visible')
    expect(negative).to_have_count(0)
    kept = page.locator('.examples[data-kind="top"] .example:visible')
    expect(kept.first).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", pages())
def test_every_view_opens_without_a_complaint_fits_the_window_and_is_accessible(
    page: Page, server: str, errors: list[str], view: str, scheme: str
):
    page.emulate_media(color_scheme=scheme)  # pyrefly: ignore[bad-argument-type]
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(f"{server}/?run=signed&view={view}&latent=5")
    expect(page.locator("table, article, section.card, .message").first).to_be_visible()
    if view == "known":
        expect(page.locator(".js-plotly-plot").first).to_be_visible()
    expect(page.get_by_test_id("stException")).to_have_count(0)
    expect(page.get_by_test_id("stSidebar")).to_have_count(0)
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    bar = page.locator("nav.top").bounding_box()
    assert bar is not None
    assert bar["height"] < 50
    assert violations(page) == []
    assert errors == []


def violations(page: Page) -> list[str]:
    """What axe-core has to say against the page, shadow roots included."""
    found = Axe().run(page).response["violations"]
    return [
        f"{v['id']}: {node['target']} {node['html'][:200]}" for v in found for node in v["nodes"]
    ]


def test_a_mark_of_the_scores_leads_to_its_latent_and_back(page: Page, server: str):
    page.goto(f"{server}/?run=signed&view=steering&sort=rank")
    page.locator("a.mark[href*='latent=9']").first.click()
    # Streamlit takes the old view away a moment after it has drawn the new one.
    expect(page.locator(".page.latent h1:visible")).to_have_text("9")
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
    expect(page.locator("h1:visible")).to_have_text("signed against plain")
    page.get_by_role("link", name="swap the two").click()
    expect(page.locator("h1:visible")).to_have_text("plain against signed")
    assert errors == []


def test_every_view_is_walked_to_back_and_forward_and_survives_a_reload(
    page: Page, server: str, errors: list[str]
):
    page.goto(f"{server}/?run=signed&latent=5")
    expect(page.locator(".page.latent h1:visible")).to_have_text("5")
    page.evaluate("window.same = true")
    current = page.locator("nav.top > a[aria-current]")
    titles = [p.title for view, p in pages().items() if view not in ("latent", "shared", "set")]
    # The bar names no page that is about other runs.
    expect(page.locator("nav.top > a")).to_have_text([*titles[:2], "Latent", *titles[2:]])
    for title in titles:
        page.locator("nav.top").get_by_role("link", name=title, exact=True).click()
        expect(current).to_have_text(title)
    for title in titles[-2::-1]:
        page.go_back()
        expect(current).to_have_text(title)
    page.go_forward()
    expect(current).to_have_text(titles[1])
    assert page.evaluate("window.same")
    page.reload()
    expect(current).to_have_text(titles[1])
    assert errors == []


def test_two_tabs_are_two_readers(page: Page, browser: Browser, server: str):
    page.goto(f"{server}/?run=signed&latent=5")
    expect(page.locator("h1:visible")).to_have_text("5")
    other = browser.new_page()
    other.goto(f"{server}/?run=plain&latent=20")
    expect(other.locator("h1:visible")).to_have_text("20")
    page.keyboard.press("j")
    other.keyboard.press("k")
    expect(page).to_have_url(f"{server}/?run=signed&latent=6")
    expect(other).to_have_url(f"{server}/?run=plain&latent=19")
    expect(page.locator("h1:visible")).to_have_text("6")
    expect(other.locator("h1:visible")).to_have_text("19")
    other.close()


HARM = "[onerror], [onload], a[href^='javascript'], img, script, iframe, object, embed"


@pytest.mark.parametrize("latent", [1, 4, 20, 21, 22, 23, 24, 25])
def test_hostile_tokens_are_inert(
    page: Page, server: str, runs: Path, errors: list[str], latent: int
):
    alerts: list[str] = []

    def refuse(dialog: Dialog) -> None:
        alerts.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", refuse)
    page.goto(f"{server}/?run=signed&latent={latent}&context=full")
    expect(page.locator(".example:visible").first).to_be_visible()
    shown = visible(Features(runs / "signed").file.token(latent)).strip()
    peak = page.locator(".on.peak:visible").first
    expect(peak).to_have_text(shown)
    # A page that is still scrolling hides the tooltip until the pointer moves.
    peak.scroll_into_view_if_needed()
    for _ in range(20):
        page.mouse.move(0, 0)
        peak.hover()
        page.wait_for_timeout(100)
        if page.locator(".tip").count():
            break
    expect(page.locator(".tip")).to_contain_text(shown)
    assert page.locator(".canvas").locator(HARM).count() == 0
    assert alerts == errors == []


def go_to(page: Page, number: str) -> None:
    """Type G and a number; a key that comes before the page listens goes nowhere."""
    field = page.get_by_label("Go to latent")
    expect(field).not_to_be_focused()  # It gives the keys back after each number.
    for _ in range(20):
        page.keyboard.press("g")
        if field.evaluate("field => field === document.activeElement"):
            break
        page.wait_for_timeout(100)
    page.keyboard.type(f"{number}\n")


def test_a_jump_is_drawn_before_the_script_has_run(page: Page, server: str):
    page.goto(f"{server}/?run=signed&latent=5")
    expect(page.locator("h1:visible")).to_have_text("5")
    app = page.get_by_test_id("stApp")
    expect(app).to_have_attribute("data-test-script-state", "notRunning")
    # What Streamlit would have to be told by is cut off.
    page.evaluate("WebSocket.prototype.send = () => {}")
    go_to(page, "17")
    expect(page.locator("h1:visible")).to_have_text("17")
    page.locator(".brand").click()
    page.keyboard.type("jjk")
    expect(page.locator("h1:visible")).to_have_text("18")
    page.get_by_role("button", name="Previous").click()
    expect(page.locator("h1:visible")).to_have_text("17")
    page.locator("a.neighbour:visible").first.click()
    expect(page.locator("h1:visible")).to_have_text("18")


def test_where_the_route_is_out_of_reach_the_script_turns_the_pages(page: Page, server: str):
    page.route("**/latent?*", lambda route: route.abort())
    page.goto(f"{server}/?run=signed&latent=5")
    expect(page.locator("h1:visible")).to_have_text("5")
    page.keyboard.type("jj")
    expect(page.locator("h1:visible")).to_have_text("7")
    expect(page).to_have_url(f"{server}/?run=signed&latent=7")


def test_the_last_asked_for_wins_over_slow_answers(page: Page, server: str):
    def late(route: Route) -> None:
        # The first page asked for arrives last.
        if "latent=9" in route.request.url:
            page.wait_for_timeout(400)
        route.continue_()

    page.goto(f"{server}/?run=signed&latent=5")
    expect(page.locator("h1:visible")).to_have_text("5")
    page.route("**/latent?*", late)
    for number in ("9", "12"):
        go_to(page, number)
    expect(page).to_have_url(f"{server}/?run=signed&latent=12")
    page.wait_for_timeout(600)
    expect(page.locator("h1:visible")).to_have_text("12")


def test_random_after_a_turn_is_not_taken_for_an_old_answer(page: Page, server: str):
    page.goto(f"{server}/?run=signed&latent=5")
    expect(page.locator("h1:visible")).to_have_text("5")
    page.keyboard.press("j")
    page.get_by_role("button", name="Random").click()
    # 31 latents fire, and the draw may fall on the one that is shown.
    expect(page).to_have_url(re.compile(r"latent=\d+$"))
    for _ in range(3):
        page.get_by_role("button", name="Random").click()
        page.wait_for_timeout(500)
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning")
    expect(page.locator("h1:visible")).to_have_text(page.url.rpartition("=")[2])
