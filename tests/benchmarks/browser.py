"""How fast the feature browser is at thousands of latents, as a reader in Chromium sees it.

    PYTHONPATH=tests python -m benchmarks.browser [--runs DIR] [--steps 100] [--json FILE]

makes two such runs in DIR and a small one of the shipped model (unless they are there), serves
them, and times from an input event to the paint that shows what it asked for: the keys J and K,
numbers typed after G, and the links of the bar, each view in turns. A language model is loaded
first. It does so twice: for one reader, and beside nine others.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil
from apps.readers import reading
from apps.serving import Server, chromium, headless, served
from benchmarks.prepared import LIVE, add_options, prepared
from feature_browser.pages import pages
from playwright.sync_api import Page, expect
from rich.console import Console
from rich.table import Table

PROBE = Path(__file__).with_name("browser_probe.js")
VIEWS = {name: page.title for name, page in pages().items()}
LIMIT_MS = 240_000
WITH_FIGURES = ("known",)
"""Views that are drawn when Plotly has drawn."""
WHO = ("john", "hugo", "tina", "henry", "kate", "ivy", "victor", "walter", "robert", "diana")
"""Who does something in the prompts."""
Times = dict[str, list[float]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sessions", type=int, default=10)
    add_options(parser)
    options = parser.parse_args()
    with prepared(options) as runs:
        facts = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "d_sae": options.d_sae}
        times: Times = {}
        for state, found in measure(runs, options):
            part = {f"{state}: {name}": values for name, values in found.items()}
            times |= part
            all_of = {name: summary(values) for name, values in times.items()}
            Console().print(table({name: all_of[name] for name in part}))
            Console().print(f"load of the last minute {os.getloadavg()[0]:.1f}")
            if options.json:
                options.json.parent.mkdir(parents=True, exist_ok=True)
                options.json.write_text(json.dumps(facts | {"ms": all_of, "all": times}, indent=1))


def measure(runs: Path, options: argparse.Namespace) -> Iterator[tuple[str, Times]]:
    """Times in milliseconds, by what was done, in each of the server's states."""
    path = chromium()
    assert path, "no Chromium is installed"
    with served(runs) as server, headless(path) as browser:
        page = browser.new_page(viewport={"width": 1440, "height": 940})
        page.set_default_timeout(LIMIT_MS)
        page.add_init_script(path=PROBE)
        yield "alone", _tries(page, server, "gave")
        yield "alone", _read(page, server, options)
        queries = [f"run=run0&view={view}" for view in VIEWS if view not in ("runs", "latent")]
        with reading(server.url, options.sessions - 1, queries, "run=run1&latent="):
            yield f"{options.sessions} sessions", _tries(page, server, "lent")
            yield f"{options.sessions} sessions", _read(page, server, options)


def _read(page: Page, server: Server, options: argparse.Namespace) -> Times:
    page.goto(f"{server.url}/?run=run0&latent=100")
    expect(page.locator(".example").first).to_be_visible(timeout=LIMIT_MS)
    n_latents = int(page.locator("[data-latents]").get_attribute("data-latents") or 0)
    found = turns(page, options.steps, n_latents)
    Console().print(table({name: summary(values) for name, values in found.items()}))
    found |= views(page, options.rounds)
    Console().print(f"{psutil.Process(server.pid).memory_info().rss / 1e6:.0f} MB")
    return found


def _tries(page: Page, server: Server, verb: str) -> Times:
    """From a prompt until its latents are seen; the first of a server may wait for the model."""
    times: Times = {}
    for i, who in enumerate(WHO):
        page.goto(f"{server.url}/?run={LIVE}&view=try")
        field = page.get_by_label("Prompt")
        field.fill(f"anna met john in the park . {who} {verb} a book to")
        started = time.monotonic()
        field.press("Control+Enter")
        expect(page.locator("h1.headline")).to_contain_text("latents fire on", timeout=LIMIT_MS)
        name = "Try it, a new prompt" if i else "Try it, the first prompt"
        times.setdefault(name, []).append(1e3 * (time.monotonic() - started))
    return times


def turns(page: Page, steps: int, n_latents: int) -> Times:
    """Next, previous and jumps: at the pace of a reader, and as fast as each is shown."""
    draw = np.random.default_rng(0)
    times: Times = {}
    floor = times.setdefault("floor: one word changes", [])
    for _ in range(max(1, steps // 4)):
        page.evaluate("probe.floor()")
        page.keyboard.press("q")
        floor.append(_taken(page))
        time.sleep(0.2)
    latent = 100
    for name, key, by in (("next", "j", 1), ("previous", "k", -1)):
        for pace, pause in (("", lambda: 0.2 + 0.4 * draw.random()), (", at once", lambda: 0.0)):
            took = times.setdefault(name + pace, [])
            for _ in range(steps if not pace else max(1, steps // 4)):
                latent += by
                took.append(_timed(page, latent, lambda key=key: page.keyboard.press(key)))
                time.sleep(pause())
    jumps = times.setdefault("jump to any latent", [])
    for latent in draw.integers(0, n_latents, steps).tolist():
        time.sleep(0.5)
        page.keyboard.press("g")
        page.keyboard.type(str(latent), delay=80)
        time.sleep(0.08)
        jumps.append(_timed(page, latent, lambda: page.keyboard.press("Enter")))
        page.evaluate("document.activeElement?.blur()")
    return times


def views(page: Page, rounds: int) -> Times:
    """A change to every view by its link, from the page of a latent and back.

    The first pass warms up, and picks the run that Compare compares with.
    """
    times: Times = {}
    _change(page, "compare", {})
    page.get_by_role("link", name="run1", exact=True).first.click()
    started = time.monotonic()
    expect(page.locator("table caption", has_text="nearest")).to_have_count(1, timeout=LIMIT_MS)
    times["first comparison of the two runs"] = [1e3 * (time.monotonic() - started)]
    named = page.locator("nav.top a").all_text_contents()
    for turn in range(rounds + 1):
        for view in [view for view in VIEWS if view != "latent" and VIEWS[view] in named]:
            _change(page, view, times if turn else {})
            _change(page, "latent", times if turn else {})
    return times


def _change(page: Page, view: str, times: Times) -> None:
    # Streamlit takes the old view away a moment after it has drawn the new one.
    app = page.get_by_test_id("stApp")
    expect(app).to_have_attribute("data-test-script-state", "notRunning", timeout=LIMIT_MS)
    time.sleep(0.5)
    page.evaluate("([title, n]) => probe.view(title, n)", [VIEWS[view], view in WITH_FIGURES])
    page.locator("nav.top").get_by_role("link", name=VIEWS[view], exact=True).click()
    times.setdefault(f"view: {VIEWS[view]}", []).append(_taken(page))


def _timed(page: Page, latent: int, act: Callable[[], None]) -> float:
    page.evaluate("latent => probe.latent(latent)", latent)
    act()
    return _taken(page)


def _taken(page: Page) -> float:
    deadline = time.monotonic() + LIMIT_MS / 1000
    # The page's policy forbids the evaluation that `wait_for_function` would make.
    while (taken := page.evaluate("probe.taken()")) is None:
        assert time.monotonic() < deadline, "nothing was drawn"
        time.sleep(0.05)
    return float(taken[-1])


def summary(values: list[float]) -> dict[str, float]:
    """Middle, 95th percentile and largest, and how many."""
    p50, p95 = np.percentile(values, [50, 95]).tolist()
    return {"n": len(values), "p50": p50, "p95": p95, "max": max(values)}


def table(found: dict[str, dict[str, float]]) -> Table:
    """One row per thing that was done."""
    shown = Table(title="From input to paint, ms", title_justify="left", box=None)
    for title in ("", "n", "p50", "p95", "max"):
        shown.add_column(title, justify="right" if title else "left")
    for name, row in found.items():
        figures = [f"{row[key]:.0f}" for key in ("n", "p50", "p95", "max")]
        shown.add_row(name, *figures)
    return shown


if __name__ == "__main__":
    main()
