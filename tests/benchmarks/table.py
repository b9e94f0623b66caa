"""Tables of measured and planned figures, from committed JSON; `make benchmarks` writes them."""

import sys
from pathlib import Path
from typing import Any

from benchmarks.planned import planned

from saelab.bench.pace import MEASURED
from saelab.formats.json_file import read_object

ROOT = Path(__file__).resolve().parents[2]
START, END = "<!-- {}: written by make benchmarks -->\n", "<!-- end of {} -->\n"
COLUMNS = {
    "topk": "TopK",
    "batch-topk": "BatchTopK",
    "matryoshka": "Matryoshka",
    "hierarchical-topk": "Hierarchical",
    "jumprelu": "JumpReLU",
    "gradient-topk": "gradient",
    "dense": "TopK in plain torch, compiled",
}
"""Variants, by the names that the table gives them."""


def steps() -> str:
    """Milliseconds of a step: a line for each file of steps and each size."""
    names = ["GPU", "d_in / d_sae / k", "floor", *COLUMNS.values()]
    lines = [names, ["---", "---", *["--:"] * (len(names) - 2)]]
    for path in sorted(MEASURED.glob("step-*.json")):
        found = read_object(path)
        sizes: dict[str, dict[str, Any]] = {}
        for step in found["steps"]:
            shape = step["shape"]
            size = f"{shape['d_in']} / {shape['d_sae']} / {shape['k']}"
            sizes.setdefault(size, {"floor": step["floor"]})[step["variant"]] = step["seconds"]
        for size, values in sizes.items():
            cells = [_ms(values.get(key)) for key in ("floor", *COLUMNS)]
            lines.append([found["device"].removeprefix("NVIDIA "), size, *cells])
    return _table(lines)


def road() -> str:
    """What else was measured: a line for each figure."""
    lines = [["measured", "value", "on", "of"], ["---", "--:", "---", "---"]]
    for path in sorted(MEASURED.glob("*.json")):
        found = read_object(path)
        device = found["device"].removeprefix("NVIDIA ")
        lines += [
            [figure["name"], _value(figure), f"{device}, {found['date']}", figure["of"]]
            for figure in found.get("figures", ())
        ]
    return _table(lines)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{float(f'{1e3 * seconds:.3g}'):g}"


def _value(figure: dict[str, Any]) -> str:
    value, unit = figure["value"], figure["unit"]
    if unit == "s":
        return f"{1e3 * value:.3g} ms"
    for factor, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {name if unit[0] == 'B' else name + ' '}{unit}"
    return f"{value:.3g}" if unit == "share" else f"{value:.3g} {unit}"


def _table(lines: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


TABLES = {
    "steps": (ROOT / "README.md", steps),
    "figures": (ROOT / "docs" / "planning.md", road),
    "plans": (ROOT / "docs" / "planning.md", planned),
}
"""The tables by the names of their marks: the page, and what makes the table."""


def written(name: str) -> str:
    """What stands between a table's marks."""
    text = TABLES[name][0].read_text()
    return text.partition(START.format(name))[2].partition(END.format(name))[0]


def main() -> int:
    """Write every table into its page."""
    for name, (page, make) in TABLES.items():
        before, mark, rest = page.read_text().partition(START.format(name))
        assert mark, f"{page} has no place for {name}."
        end = END.format(name)
        page.write_text(before + mark + make() + end + rest.partition(end)[2])
    return 0


if __name__ == "__main__":
    sys.exit(main())
