"""Pictures of every page, in light and dark, to be looked at.

    PYTHONPATH=tests python -m apps.screenshots RUNS --out DIRECTORY

serves RUNS, opens every view of the first run that has features, and writes a PNG of each.
"""

import argparse
from pathlib import Path

from apps.serving import PATIENCE_S, chromium, headless, listen, served
from feature_browser.data.address import link
from feature_browser.data.catalogue import Catalogue, RunCard, read_catalogue
from feature_browser.pages import pages
from playwright.sync_api import Browser, expect
from rich.console import Console

SCHEMES = ("light", "dark")
WIDTH, HEIGHT = 1280, 1500
SETTLED_MS = 1500


def main() -> None:
    """Take the pictures, and say what the pages complained about."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--height", type=int, default=HEIGHT)
    options = parser.parse_args()
    path = chromium()
    assert path, "no Chromium is installed"
    options.out.mkdir(parents=True, exist_ok=True)
    links = addresses(read_catalogue(options.runs))
    console = Console()
    with served(options.runs) as server, headless(path) as browser:
        for name, href in links.items():
            for scheme in SCHEMES:
                picture = options.out / f"{name}-{scheme}.png"
                errors = take(browser, f"{server.url}/{href}", scheme, picture, options.height)
                console.print(picture, *errors)


def addresses(catalogue: Catalogue) -> dict[str, str]:
    """Links to every page of the run that has most to show, by the name of its picture."""
    cards = sorted(catalogue.runs.values(), key=_shows, reverse=True)
    assert cards, f"{catalogue.root} holds no finished run"
    first = cards[0]
    alike = [
        card.name for card in cards[1:] if (card.site, card.model) == (first.site, first.model)
    ]
    links = {view: link(view, run=first.name) for view in pages()}
    if others := alike or [card.name for card in cards[1:]]:
        links["compare"] = link("compare", run=first.name, other=others[0])
    with_heads = [card.name for card in cards if card.site.endswith("hook_z")]
    if with_heads:
        links["attention"] = link("attention", run=with_heads[0])
    links["latent-strata"] = link("latent", run=first.name, show="strata", context="full")
    links["no-run"] = link("runs", run="no such run")
    if graphs := [graph for card in cards for graph in sorted(card.path.glob("circuits/*.h5"))]:
        run = graphs[0].parents[1].relative_to(catalogue.root).as_posix()
        links["circuit"] = link("circuit", run=run, graph=graphs[0].stem)
    return links


def _shows(card: RunCard) -> tuple[bool, bool, int]:
    return card.features_path.is_file(), (card.path / "steering.h5").is_file(), card.found or 0


def take(browser: Browser, url: str, scheme: str, picture: Path, height: int) -> list[str]:
    """Write one picture; returns the page's errors."""
    page = browser.new_page(viewport={"width": WIDTH, "height": height})
    errors = listen(page)
    page.emulate_media(color_scheme=scheme)  # pyrefly: ignore[bad-argument-type]
    page.goto(url)
    app = page.get_by_test_id("stApp")
    expect(page.locator(".page").first).to_be_visible(timeout=1000 * PATIENCE_S)
    # A page that looks at a job every second is never done, so its pictures are taken as they are.
    page.wait_for_timeout(SETTLED_MS)
    expect(app).to_have_attribute("data-test-script-state", "notRunning", timeout=30_000)
    page.screenshot(path=picture)
    page.close()
    return errors


if __name__ == "__main__":
    main()
