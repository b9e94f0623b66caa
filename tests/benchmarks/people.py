"""Ten people on one server: does its memory stay flat, and does nobody wait for another's work?

    PYTHONPATH=tests python -m benchmarks.people [--minutes 60] [--people 10] [--json FILE]

Each has a session of the app, looks at a page for some seconds, and goes on: latents, all other
pages, prompts of their own. It prints the server's memory and the time of a page every 30 s, and at
the end how fast memory grows, by least squares over the second half. A page that fails ends it.
"""

import argparse
import json
import threading
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from urllib.request import urlopen

import numpy as np
import psutil
from apps.readers import look, session
from apps.serving import Server, served
from benchmarks.browser import VIEWS, WHO, summary
from benchmarks.prepared import LIVE, add_options, prepared
from rich.console import Console

WARM_MINUTES = 1.0
"""Caches fill first; this long is not counted."""


@dataclass
class Record:
    """What was seen: minutes and megabytes; milliseconds of pages, by kind; what failed."""

    memory: list[tuple[float, float]] = field(default_factory=list)
    ms: dict[str, list[float]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def slope(self) -> tuple[float, float]:
        """Megabytes an hour over the second half, and the standard error of that."""
        minutes, used = np.array(self.memory[len(self.memory) // 2 :]).T
        if len(minutes) < 3:
            return float("nan"), float("nan")
        fit, error = np.polyfit(minutes / 60, used, 1, cov=True)
        return float(fit[0]), float(error[0, 0] ** 0.5)

    def pages(self) -> str:
        """The middle and the 95th percentile of each kind of page."""
        parts = []
        for kind, values in sorted(self.ms.items()):
            p50, p95 = np.percentile(values, [50, 95])
            parts.append(f"{kind} p50 {p50:.0f} p95 {p95:.0f} ({len(values)})")
        return " · ".join(parts)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--people", type=int, default=10)
    add_options(parser)
    options = parser.parse_args()
    with prepared(options) as runs, served(runs) as server:
        found = watch(server, options.people, options.minutes)
    grows, error = found.slope()
    Console().print(f"{options.people} people, {options.minutes:g} minutes: {found.pages()}")
    Console().print(f"memory grows by {grows:.1f} ± {error:.1f} MB an hour over the second half")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        facts = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "d_sae": options.d_sae}
        facts |= {"people": options.people, "minutes": options.minutes}
        times = {kind: summary(values) for kind, values in found.ms.items()}
        options.json.write_text(json.dumps(facts | asdict(found) | {"ms": times}, indent=1))
    assert not found.problems, found.problems[:3]


def watch(server: Server, people: int, minutes: float) -> Record:
    """What a server does while people use it for so long."""
    found, stop, begun = Record(), threading.Event(), time.monotonic()
    threads = [
        threading.Thread(target=_person, args=(server.url, i, people, stop, found), daemon=True)
        for i in range(people)
    ]
    for thread in threads:
        thread.start()
    process, end = psutil.Process(server.pid), begun + 60 * minutes
    while time.monotonic() < end and not found.problems:
        stop.wait(min(30.0, max(0.5, 6 * minutes)))
        at, used = (time.monotonic() - begun) / 60, process.memory_info().rss / 1e6
        if at < min(WARM_MINUTES, minutes / 4):
            found.ms.clear()
            continue
        found.memory.append((at, used))
        jobs = sum(child.is_running() for child in process.children(recursive=True))
        Console().print(f"{at:5.1f} min  {used:6.0f} MB  {jobs} workers  {found.pages()}")
    stop.set()
    for thread in threads:
        thread.join(timeout=60)
    return found


def _person(url: str, person: int, people: int, stop: threading.Event, found: Record) -> None:
    draw = np.random.default_rng(person)
    others = [view for view in VIEWS if view not in ("runs", "latent", "try")]
    try:
        with session(url) as socket:
            stop.wait(5 * person / people)
            while not stop.wait(float(draw.uniform(2, 8))):
                kind = str(draw.choice(["latent", "turn", "page", "try"], p=[0.35, 0.35, 0.2, 0.1]))
                latent, started = int(draw.integers(0, 512)), time.monotonic()
                if kind == "turn":
                    with urlopen(f"{url}/latent?run=run1&latent={latent}") as answer:
                        answer.read()
                elif kind == "latent":
                    look(socket, f"run=run1&latent={latent}")
                elif kind == "try":
                    who, other = draw.choice(WHO, 2)
                    text = f"{who}+met+{other}+in+the+park"
                    look(socket, f"run={LIVE}&view=try&prompt={text}")
                else:
                    look(socket, f"run=run0&other=run1&view={draw.choice(others)}")
                took = 1e3 * (time.monotonic() - started)
                found.ms.setdefault(kind, []).append(took)
    except Exception as error:  # noqa: BLE001 - whatever fails is what is looked for
        found.problems.append(f"person {person}: {type(error).__name__}: {error}"[:300])


if __name__ == "__main__":
    main()
