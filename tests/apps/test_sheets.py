"""Pages that are laid out before they are turned to."""

import pytest
from apps.test_browser import violations
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.slow]

AROUND_5 = 2


@pytest.fixture
def ready(page: Page, server: str) -> Page:
    """Latent 5, and the pages around it laid out."""
    page.goto(f"{server}/?run=signed&latent=5")
    expect(page.locator(".waiting")).to_have_count(AROUND_5)
    return page


def inside_waiting(page: Page) -> bool:
    """Whether the keyboard's focus is in a page that is not shown."""
    return page.evaluate(
        """() => {
          let focus = document.activeElement
          while (focus?.shadowRoot) focus = focus.shadowRoot.activeElement
          return Boolean(focus?.closest(".waiting"))
        }"""
    )


def test_a_turn_shows_the_page_that_was_waiting(ready: Page):
    numbers = ready.locator(".waiting h1").all_text_contents()
    assert sorted(numbers) == ["4", "6"]
    ready.locator(".waiting", has=ready.locator("h1", has_text="6")).evaluate("e => e.mark = 1")
    ready.keyboard.press("j")
    shown = ready.locator(".canvas > :not(.waiting)", has=ready.locator("[data-latent]"))
    expect(shown.locator("h1")).to_have_text("6")
    assert shown.evaluate("e => e.mark") == 1
    # The one that was left waits in turn.
    expect(ready.locator(".waiting h1", has_text="5")).to_have_count(1)


def test_what_waits_is_out_of_reach(ready: Page):
    expect(ready.locator("[data-latent]")).to_have_count(1)
    expect(ready.get_by_role("heading", level=1)).to_have_count(1)
    expect(ready.locator("h1:visible")).to_have_count(1)
    links = ready.locator("a:visible, summary:visible").count()
    for _ in range(links + 20):
        ready.keyboard.press("Tab")
        assert not inside_waiting(ready)
    assert violations(ready) == []


def test_what_waits_takes_no_room(ready: Page):
    tall = ready.locator(".page.latent:visible").bounding_box()
    canvas = ready.locator(".canvas", has=ready.locator("[data-latent]")).bounding_box()
    assert tall is not None
    assert canvas is not None
    assert canvas["height"] == pytest.approx(tall["height"], abs=1)


def test_a_long_walk_leaves_few_pages_behind(ready: Page):
    for latent in range(6, 20):
        ready.keyboard.press("j")
        expect(ready.locator("h1:visible")).to_have_text(str(latent))
    expect(ready).to_have_url(ready.url.partition("&latent")[0] + "&latent=19")
    expect(ready.locator(".waiting")).to_have_count(6)


def test_a_page_that_the_reader_has_changed_is_drawn_anew(ready: Page):
    ready.locator("summary:visible", has_text="more").first.click()
    expect(ready.locator("details[open]:visible")).to_have_count(1)
    ready.keyboard.press("j")
    expect(ready.locator("h1:visible")).to_have_text("6")
    ready.keyboard.press("k")
    expect(ready.locator("h1:visible")).to_have_text("5")
    expect(ready.locator("details[open]:visible")).to_have_count(0)


def test_a_number_is_laid_out_while_it_is_typed(ready: Page):
    ready.keyboard.press("g")
    ready.keyboard.type("21")
    expect(ready.locator(".waiting h1", has_text="21")).to_have_count(1)
    ready.keyboard.press("Enter")
    expect(ready.locator("h1:visible")).to_have_text("21")
