"""Pictures of every page, in light and dark and at any widths, to be looked at.

    PYTHONPATH=tests python -m apps.screenshots RUNS --out DIRECTORY [--widths 640 1280 2560]

serves RUNS, opens every view of the first run that has features, and writes a PNG of each. It says
which pages complained in the console, or are wider than the window, and fails if there is one.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from apps.serving import PATIENCE_S, chromium, headless, listen, served
from feature_browser.data.address import link
from feature_browser.data.catalogue import Catalogue, RunCard, read_catalogue
from feature_browser.data.labels import lists_of
from feature_browser.pages import pages
from feature_browser.pages.steering.experiment import Experiment
from playwright.sync_api import Browser, expect
from rich.console import Console

SCHEMES = ("light", "dark")
WIDTH, HEIGHT = 1280, 1500
PROMPT, OTHER = "john gave mary a book .", "mary gave john a cat ."
SETTLED_MS, RESIZED_MS = 1500, 500


def main() -> None:
    """Take the pictures, and say what the pages complained about."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--height", type=int, default=HEIGHT)
    parser.add_argument("--widths", type=int, nargs="+", default=[WIDTH])
    parser.add_argument("--only", nargs="+", help="names of pictures; default: all")
    options = parser.parse_args()
    path = chromium()
    assert path, "no Chromium is installed"
    options.out.mkdir(parents=True, exist_ok=True)
    links = addresses(read_catalogue(options.runs))
    console = Console()
    wrong = 0
    with served(options.runs) as server, headless(path) as browser:
        for name in options.only or links:
            for scheme in SCHEMES:
                url = f"{server.url}/{links[name]}"
                for width, errors in take(browser, url, scheme, name, options):
                    console.print(f"{name} {scheme} {width}", *errors)
                    wrong += bool(errors)
    sys.exit(wrong > 0)


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
    links["beside-four"] = link("beside", run=first.name, latents="5, 17, 3, 11")
    if kept := lists_of(first):
        links["list"] = link("lists", run=first.name, list=min(kept))
    links["try-prompt"] = link("try", run=first.name, prompt=PROMPT, pos="3")
    links["try-pair"] = link("try", run=first.name, prompt=PROMPT, second=OTHER)
    experiment = Experiment(prompt=PROMPT, latents=(5,), unit="a_max", dose=True)
    links["steering-live"] = link(
        "steering", run=first.name, part="live", experiment=experiment.text
    )
    links["no-run"] = link("runs", run="no such run")
    if graphs := [graph for card in cards for graph in sorted(card.path.glob("circuits/*.h5"))]:
        run = graphs[0].parents[1].relative_to(catalogue.root).as_posix()
        links["circuit"] = link("circuit", run=run, graph=graphs[0].stem)
    return links


def _shows(card: RunCard) -> tuple[bool, bool, int]:
    return card.features_path.is_file(), (card.path / "steering.h5").is_file(), card.found or 0


def take(
    browser: Browser, url: str, scheme: str, name: str, options: argparse.Namespace
) -> Iterator[tuple[int, list[str]]]:
    """Write a picture of each width; yields it with what is wrong with the page."""
    page = browser.new_page(viewport={"width": options.widths[0], "height": options.height})
    errors = listen(page)
    page.emulate_media(color_scheme=scheme)  # pyrefly: ignore[bad-argument-type]
    page.goto(url)
    app = page.get_by_test_id("stApp")
    expect(page.locator(".page").first).to_be_visible(timeout=1000 * PATIENCE_S)
    # A page that looks at a job every second is never done, so its pictures are taken as they are.
    page.wait_for_timeout(SETTLED_MS)
    expect(app).to_have_attribute("data-test-script-state", "notRunning", timeout=30_000)
    for width in options.widths:
        page.set_viewport_size({"width": width, "height": options.height})
        page.wait_for_timeout(RESIZED_MS)
        part = f"-{width}" if len(options.widths) > 1 else ""
        page.screenshot(path=options.out / f"{name}-{scheme}{part}.png")
        wide = int(page.evaluate("document.documentElement.scrollWidth"))
        yield width, [*errors, *([f"is {wide} px wide"] if wide > width else [])]
    page.close()


if __name__ == "__main__":
    main()
