"""Try it, live steering and notes as a person uses them, in headless Chromium."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from apps.serving import PATIENCE_S, listen, served
from playwright.sync_api import Browser, BrowserContext, Page, WebSocketRoute, expect

from saelab.analysis.notes import Note, Notes

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PROMPT = "the big cat sat on a mat"


@pytest.fixture(scope="module")
def root(live_runs: Path, runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of a live run and of one without a model, to write into."""
    root = tmp_path_factory.mktemp("written")
    shutil.copytree(live_runs / "topk", root / "topk")
    shutil.copytree(runs / "signed", root / "signed")
    return root


@pytest.fixture(scope="module")
def url(root: Path) -> Iterator[str]:
    with served(root) as server:
        yield server.url


@pytest.fixture
def page(profile: BrowserContext) -> Iterator[Page]:
    page = profile.new_page()
    page.set_viewport_size({"width": 1280, "height": 900})
    page.set_default_timeout(60_000)
    expect.set_options(timeout=1000 * PATIENCE_S)
    errors = listen(page)
    yield page
    page.close()
    assert errors == []


def test_a_prompt_is_typed_a_token_picked_and_a_latent_lit(page: Page, url: str):
    page.goto(f"{url}/?run=topk&view=try")
    page.get_by_label("Prompt").fill(PROMPT)
    page.keyboard.press("Control+Enter")
    expect(page.locator("h1.headline")).to_contain_text("latents fire on 7 tokens")
    page.locator("button.tok", has_text="cat").hover()
    expect(page.locator(".tip")).to_contain_text("position 3")
    page.locator("button.tok", has_text="cat").click()
    expect(page.locator("h1.headline")).to_contain_text("fire on “cat”")
    assert "pos=3" in page.url
    page.locator("button.light").first.click()
    expect(page.locator("button.tok.on").first).to_be_visible()
    page.reload()
    expect(page.locator("h1.headline")).to_contain_text("fire on “cat”")
    expect(page.locator("button.tok.on").first).to_be_visible()
    page.go_back()
    expect(page.locator("button.tok.on")).to_have_count(0)
    page.get_by_label("Compare with").fill("a dog ran")
    page.keyboard.press("Control+Enter")
    expect(page.locator("h1.headline")).to_contain_text("latents fire in both")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_an_experiment_is_steered_saved_and_opened_again(page: Page, url: str):
    asked = [0]

    def count(_: object) -> None:
        asked[0] += 1

    page.on("websocket", lambda socket: socket.on("framesent", count))
    page.goto(f"{url}/?run=topk&view=steering&part=live&latent=3")
    page.get_by_label("Prompt").fill("the big cat")
    page.get_by_label("Tokens", exact=True).fill("4")
    page.get_by_role("button", name="Steer", exact=True).click()
    expect(page.locator(".strip:visible")).to_have_count(3)
    expect(page.locator("h1.headline")).to_contain_text("to latent 3")
    # The slider has its answers with it: it sends the server nothing.
    slider = page.get_by_label("Strength").and_(page.locator("[data-dial]"))
    expect(slider).to_have_attribute("aria-valuetext", "add 1 \u00d7 its maximum to latent 3")
    before = asked[0]
    assert before
    slider.press("ArrowRight")
    expect(page.locator("[data-notch]:visible b")).to_have_text(
        "add 1.25 \u00d7 its maximum to latent 3"
    )
    expect(page.locator(".strip:visible")).to_have_count(3)
    slider.press("End")
    assert asked[0] == before
    page.get_by_role("button", name="take it").click()
    expect(page.locator("h1.headline")).to_have_text("Add 4 \u00d7 its maximum to latent 3")
    expect(slider).to_have_attribute("aria-valuetext", "add 4 \u00d7 its maximum to latent 3")
    page.get_by_label("Save this experiment as").fill("a cat")
    # Leaving the field tells Streamlit what was typed.
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("The same text as when “a cat” was saved.")).to_be_visible()
    page.goto(f"{url}/?run=topk&view=steering&part=live")
    page.get_by_role("link", name="a cat").click()
    expect(page.locator(".strip:visible")).to_have_count(3)
    expect(page.get_by_label("Latents")).to_have_value("3")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def written(page: Page, root: Path, latents: set[int]) -> dict[int, Note]:
    """What is known of these latents, as soon as all of them are known."""
    patience = 600
    while not latents <= (notes := Notes(root / "signed").all()).keys() and patience:
        page.wait_for_timeout(100)
        patience -= 1
    return {latent: note for latent, note in notes.items() if latent in latents}


def test_keys_label_and_bookmark_a_latent_and_another_session_sees_it(
    page: Page, browser: Browser, url: str, root: Path
):
    page.goto(f"{url}/?run=signed&latent=5")
    expect(page.locator("h1:visible")).to_have_text("5")
    page.keyboard.type("ljust a label\n")
    page.keyboard.type("bnwhy it fires")
    page.keyboard.press("Control+Enter")
    page.keyboard.type("j")
    expect(page.locator("h1:visible")).to_have_text("6")
    page.keyboard.type("lthe next\n")
    expect(page).to_have_url(f"{url}/?run=signed&latent=6")
    expected = {5: Note("just a label", "why it fires", bookmark=True), 6: Note("the next")}
    # A list shows what was written before it was opened.
    assert written(page, root, {*expected}) == expected
    other = browser.new_page()
    other.goto(f"{url}/?run=signed&latent=5")
    expect(other.locator("input.label:visible")).to_have_value("just a label")
    expect(other.locator("textarea:visible")).to_have_value("why it fires")
    expect(other.locator("[data-bookmark]:visible")).to_have_attribute("aria-pressed", "true")
    other.goto(f"{url}/?run=signed&view=latents&keep=labelled")
    expect(other.locator("tbody tr")).to_have_count(2)
    other.close()


def test_a_label_is_sent_again_if_nobody_has_answered(page: Page, url: str, root: Path):
    lost = []

    def relay(socket: WebSocketRoute) -> None:
        server = socket.connect_to_server()

        def pass_on(message: str | bytes) -> None:
            unheard = isinstance(message, bytes) and b"unheard" in message and not lost
            (lost.append if unheard else server.send)(message)

        socket.on_message(pass_on)

    page.route_web_socket(re.compile("_stcore/stream"), relay)
    page.goto(f"{url}/?run=signed&latent=12")
    expect(page.locator("h1:visible")).to_have_text("12")
    page.keyboard.type("lunheard\n")
    assert written(page, root, {12}) == {12: Note("unheard")}
    assert len(lost) == 1


def test_what_is_being_typed_survives_a_drawing_of_the_same_page(page: Page, url: str):
    page.goto(f"{url}/?run=signed&latent=9")
    expect(page.locator("h1:visible")).to_have_text("9")
    page.keyboard.type("bl")
    page.keyboard.type("not yet done")
    # The bookmark's own pass of the script draws the page again meanwhile.
    page.wait_for_timeout(1500)
    expect(page.locator("input.label:visible")).to_have_value("not yet done")
    page.keyboard.press("Escape")
    expect(page.locator("input.label:visible")).to_have_value("")
    page.keyboard.type("b")
    expect(page.locator("[data-bookmark]:visible")).to_have_attribute("aria-pressed", "false")


def test_latents_are_labelled_one_after_the_other_in_the_list(page: Page, url: str, root: Path):
    page.goto(f"{url}/?run=signed&view=latents&sort=latent")
    field = page.get_by_label("Label of latent 11", exact=True)
    field.click()
    page.keyboard.type("eleven")
    drawn = field.element_handle()
    page.keyboard.press("Tab")
    # The pass that writes it draws the list again, under a link that has the focus.
    page.wait_for_function("field => !field.isConnected", arg=drawn)
    page.keyboard.press("Tab")
    expect(page.get_by_label("Label of latent 12", exact=True)).to_be_focused()
    page.keyboard.type("twelve\n")
    expect(page.get_by_label("Label of latent 12", exact=True)).to_have_value("twelve")
    for _ in range(100):  # Another pass may still be under way.
        if Notes(root / "signed").all().get(12, Note()).label == "twelve":
            break
        page.wait_for_timeout(100)
    page.reload()
    expect(page.get_by_label("Label of latent 11", exact=True)).to_have_value("eleven")
    expect(page.get_by_label("Label of latent 12", exact=True)).to_have_value("twelve")
    found = Notes(root / "signed").all()
    assert (found[11].label, found[12].label) == ("eleven", "twelve")


def test_who_writes_over_somebody_elses_label_is_told(page: Page, url: str, root: Path):
    page.goto(f"{url}/?run=signed&latent=10")
    expect(page.locator("h1:visible")).to_have_text("10")
    page.keyboard.type("bl")
    page.keyboard.type("mine")
    Notes(root / "signed").write(10, "label", "theirs")
    # The bookmark's pass draws the page with the other label below what is being typed.
    page.wait_for_timeout(1000)
    page.keyboard.press("Enter")
    expect(page.locator(".notice").first).to_contain_text("Somebody else had written “theirs”")
    assert Notes(root / "signed").all()[10].label == "mine"
