"""Tables of the app's measured times and memory, from the files that its two benchmarks write."""

from pathlib import Path
from typing import Any

import numpy as np

from saelab.formats.json_file import read_object

MEASURED = Path(__file__).with_name("measured")
ALONE, TOGETHER = "alone: ", "10 sessions: "
PEOPLE = {
    "turn": "the next latent",
    "latent": "a latent's page",
    "page": "another page",
    "try": "a new prompt",
}
EVERY_MINUTES = 5


def pages() -> list[list[str]]:
    """Milliseconds from input to paint: a line for each thing that a reader does."""
    found = read_object(MEASURED / "pages.json")["ms"]
    names = [name.removeprefix(ALONE) for name in found if name.startswith(ALONE)]
    lines = [["ms", *("one reader, p50", "p95"), *("beside nine others, p50", "p95")]]
    lines.append(["---", *["--:"] * 4])
    for name in names:
        rows = [found[state + name] for state in (ALONE, TOGETHER)]
        figures = [f"{row[key]:.0f}" for row in rows for key in ("p50", "p95")]
        lines.append([name.replace("view: ", "to the page "), *figures])
    return lines


def people() -> list[list[str]]:
    """Milliseconds of what people ask for, over all the time that they use one server."""
    found = read_object(MEASURED / "people.json")
    lines = [["ms", "n", "p50", "p95", "worst"], ["---", *["--:"] * 4]]
    for kind, title in PEOPLE.items():
        row = found["ms"][kind]
        lines.append([title, str(row["n"]), *(f"{row[key]:.0f}" for key in ("p50", "p95", "max"))])
    return lines


def memory() -> list[list[str]]:
    """Megabytes of the server while people use it."""
    seen = np.array(read_object(MEASURED / "people.json")["memory"])
    last: Any = seen[-1, 0]
    at = [seen[0, 0], *np.arange(EVERY_MINUTES, last + 0.5, EVERY_MINUTES)]
    used = [seen[np.abs(seen[:, 0] - minute).argmin(), 1] for minute in at]
    return [
        ["after minutes", *(f"{minute:.0f}" for minute in at)],
        ["---", *["--:"] * len(at)],
        ["MB", *(f"{mb:.0f}" for mb in used)],
    ]
