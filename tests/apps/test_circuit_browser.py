"""The Circuit and Attention pages as people use them, in headless Chromium."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from apps.circuit_cases import NAME, write_circuit
from apps.serving import served
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, TimeoutError, expect

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def root(circuit_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`heads` and `topk` with their model, and `bad`, a copy whose graph has hostile tokens."""
    root = tmp_path_factory.mktemp("circuit-browser")
    shutil.copytree(circuit_runs, root, dirs_exist_ok=True)
    shutil.copytree(circuit_runs / "topk", root / "bad")
    write_circuit(root / "bad")
    return root


@pytest.fixture(scope="module")
def address(root: Path) -> Iterator[str]:
    with served(root) as server:
        yield server.url


def whole(page: Page) -> None:
    """Nothing went wrong, nothing needs to be scrolled sideways, and axe-core has no complaint."""
    expect(page.get_by_test_id("stException")).to_have_count(0)
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    found = Axe().run(page).response["violations"]
    assert [(v["id"], node["html"]) for v in found for node in v["nodes"]] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_graph_opens_in_either_theme_and_its_hostile_tokens_do_nothing(
    page: Page, address: str, errors: list[str], scheme: str
):
    page.emulate_media(color_scheme=scheme)  # pyrefly: ignore[bad-argument-type]
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(f"{address}/?view=circuit&run=bad&graph={NAME}&nodes=100&edges=100")
    expect(page.locator(".graph .node")).to_have_count(12)
    assert page.evaluate("document.querySelectorAll('img[src=x]').length") == 0
    whole(page)
    assert errors == []


def test_a_node_lights_up_its_edges_is_picked_pinned_and_unpinned_by_going_back(
    page: Page, address: str, errors: list[str]
):
    page.goto(f"{address}/?view=circuit&run=bad&graph={NAME}&nodes=100&edges=100")
    node = page.locator(".graph .node[data-n='8']")
    # A page that is still scrolling or drawn anew forgets the pointer until it moves.
    for _ in range(20):
        page.mouse.move(0, 0)
        node.hover()
        page.wait_for_timeout(100)
        if page.locator(".edge.lit").count():
            break
    expect(page.locator(".edge.lit")).to_have_count(4)
    expect(page.locator(".tip")).to_contain_text("heads 5")
    node.click()
    expect(page.get_by_text("latent 5 of heads, which reads attention heads")).to_be_visible()
    expect(page.locator(".edge.near")).to_have_count(4)
    page.get_by_role("link", name="pin", exact=True).click()
    expect(page.locator(".graph .pin")).to_have_count(1)
    assert "pins=heads" in page.url
    page.go_back()
    expect(page.locator(".graph .pin")).to_have_count(0)
    assert errors == []


def test_the_slider_hides_nodes_says_how_many_and_all_come_back(page: Page, address: str):
    page.goto(f"{address}/?view=circuit&run=bad&graph={NAME}&nodes=100&edges=100")
    expect(page.locator("p.summary")).to_contain_text("hidden by filter: 0 nodes, 0 edges")
    page.get_by_role("slider").first.focus()
    for _ in range(7):
        page.keyboard.press("PageDown")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("p.summary")).not_to_contain_text("hidden by filter: 0 nodes")
    # The slider tells its last place a little later, which would come after the click.
    expect(page).to_have_url(re.compile("nodes=29"))
    page.get_by_role("link", name="show all").click()
    expect(page.locator(".graph .node")).to_have_count(12)
    expect(page.get_by_role("slider").first).to_have_value("100")


def downloaded(page: Page, button: str) -> Path:
    """What a button gives; a click is lost where the page is being drawn anew under it."""
    for patience in (5_000, 5_000, 60_000):
        try:
            with page.expect_download(timeout=patience) as download:
                page.get_by_role("button", name=button, exact=True).click()
        except TimeoutError:
            continue
        return download.value.path()
    pytest.fail(f"{button} gave nothing")


def test_pins_are_named_survive_a_reload_and_are_exported(page: Page, address: str):
    pins = "heads 5 @4|plain 7 @4"
    page.goto(f"{address}/?view=circuit&run=bad&graph={NAME}&pins={pins}")
    page.get_by_label("Name the pinned nodes together").fill("<b>both</b>")
    page.get_by_role("button", name="Save supernode").click()
    expect(page.get_by_role("link", name="<b>both</b>")).to_be_visible()
    page.goto(f"{address}/?view=circuit&run=bad&graph={NAME}")
    page.get_by_role("link", name="<b>both</b>").click()
    expect(page.locator(".graph .pin")).to_have_count(2)
    for button in ("JSON", "circuit-tracer JSON"):
        assert json.loads(downloaded(page, button).read_text())["nodes"]


def test_pinned_latents_are_changed_in_the_live_model(
    page: Page, address: str, root: Path, errors: list[str]
):
    (path,) = (root / "heads" / "circuits").glob("*.h5")
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(f"{address}/?view=circuit&run=heads&graph={path.stem}&nodes=100&edges=100")
    page.locator(".graph .node:has(.k-heads)").last.click()
    page.get_by_role("link", name="pin", exact=True).click()
    page.get_by_role("button", name="Run in the live model").click()
    expect(page.get_by_text("Without the 1 latent, logit 'dog'")).to_be_visible()
    whole(page)
    assert errors == []


def test_an_example_is_followed_from_source_to_source(page: Page, address: str, errors: list[str]):
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(f"{address}/?view=attention&run=heads")
    page.get_by_label("Example 1", exact=True).click()
    expect(page.get_by_text("Which source tokens, through which heads?")).to_be_visible()
    page.locator(".sources a").last.click()
    expect(page.get_by_text("holds that does it")).to_be_visible()
    whole(page)
    page.locator("a.amount").first.click()
    expect(page.get_by_text("What gives it its value directly?")).to_be_visible()
    page.get_by_label("Latents followed").get_by_role("link").first.click()
    expect(page.get_by_text("Which source tokens, through which heads?")).to_be_visible()
    whole(page)
    assert errors == []


def test_a_prompt_is_explained_watched_zoomed_and_set_beside_another(
    page: Page, address: str, root: Path, errors: list[str]
):
    page.set_viewport_size({"width": 1280, "height": 900})
    (path,) = (root / "heads" / "circuits").glob("*.h5")
    page.goto(f"{address}/?view=circuit&run=heads&graph={path.stem}")
    page.get_by_role("link", name="another beside this one").click()
    expect(page.get_by_role("button", name="Explain", exact=True)).to_be_visible()
    page.get_by_label("Prompt: why does the model").fill("a big cat sat on the")
    page.get_by_role("button", name="Explain", exact=True).click()
    # The process is started, and the graph opens by itself.
    expect(page.get_by_text("What differs")).to_be_visible()
    expect(page.locator(".wide-picture")).to_have_count(2)
    whole(page)
    wide = page.locator(".graph").first.evaluate("graph => graph.clientWidth")
    page.get_by_role("button", name="Zoom in").click()
    grown = page.locator(".graph").first.evaluate("graph => graph.clientWidth")
    assert grown == pytest.approx(1.3 * wide, rel=0.02)
    assert len([*(root / "heads" / "circuits").glob("*.h5")]) == 2
    # The same process explains the next, of which a fault is one sentence.
    page.goto(f"{address}/?view=circuit&run=heads&part=explain&prompt=a&target=no such token")
    page.get_by_role("button", name="Explain", exact=True).click()
    expect(page.get_by_text("is not one token of")).to_be_visible()
    assert errors == []
