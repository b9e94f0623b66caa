"""Tables of measured and planned figures, from committed JSON; `make benchmarks` writes them."""

import sys
from pathlib import Path
from typing import Any

from benchmarks.app_tables import memory, pages, people
from benchmarks.planned import checked, planned

from saelab.bench.pace import MEASURED, shares
from saelab.bench.scale import gains
from saelab.formats.json_file import read_object

ROOT = Path(__file__).resolve().parents[2]
START, END = "<!-- {}: written by make benchmarks -->\n", "<!-- end of {} -->\n"
COLUMNS = {
    "topk": "TopK",
    "topk, 0.1 dead": "with 10 % dead",
    "batch-topk": "BatchTopK",
    "matryoshka": "Matryoshka",
    "hierarchical-topk": "Hierarchical",
    "jumprelu": "JumpReLU",
    "k-sparse": "k-sparse",
    "gradient-topk": "gradient",
    "dense": "TopK in plain torch, compiled",
}
"""Variants, by the names that the table gives them."""


def steps() -> str:
    """Milliseconds of a step: a line for each file of steps and each size."""
    rows: list[tuple[str, str, dict[str, Any]]] = []
    for path in sorted(MEASURED.glob("step-*.json")):
        found = read_object(path)
        sizes: dict[str, dict[str, Any]] = {}
        for step in found["steps"]:
            shape = step["shape"]
            size = f"{shape['d_in']} / {shape['d_sae']} / {shape['k']}"
            dead = f", {shape['dead']:g} dead" if shape.get("dead") else ""
            values = sizes.setdefault(size, {"floor": step["floor"]})
            values[step["variant"] + dead] = step["seconds"]
        device = found["device"].removeprefix("NVIDIA ")
        rows += [(device, size, values) for size, values in sizes.items()]
    measured = [key for key in COLUMNS if any(key in values for _, _, values in rows)]
    names = ["GPU", "d_in / d_sae / k", "floor", *(COLUMNS[key] for key in measured)]
    lines = [names, ["---", "---", *["--:"] * (len(names) - 2)]]
    for device, size, values in rows:
        lines.append([device, size, *(_ms(values.get(key)) for key in ("floor", *measured))])
    return _table(lines)


def scales() -> str:
    """Milliseconds of a step of one GPU and of several: a line for each size and number.

    Where replicas take more rows than one GPU, `one` is its time for a replica's rows.
    """
    lines = [["GPUs", "d_in / d_sae / k", "rows", "one", "all", "speed-up"]]
    lines.append(["---", "---", *["--:"] * 4])
    for path in sorted(MEASURED.glob("scale-*.json")):
        found = read_object(path)
        device = found["device"].removeprefix("NVIDIA ")
        for row, (gain, _) in zip(found["steps"], gains(found["steps"]), strict=True):
            n, replicas = row["processes"], row.get("replicas", 1)
            weak = row["kind"] == "weak"
            if n == 1 or (weak and replicas == 1):
                continue
            one = None if gain is None else gain * row["seconds"] / (n if weak else 1)
            size = f"{row['d_in']} / {row['d_sae']} / {row['k']}"
            told = "does not fit" if one is None else _ms(one), _ms(row["seconds"])
            faster = "-" if gain is None else f"{gain:.2f}"
            gpus = f"{n} x {device}" + (f", {replicas} replicas" if replicas > 1 else "")
            lines.append([gpus, size, str(row["batch"]), *told, faster])
    return _table(lines)


def figures() -> str:
    """What every kind is planned with beside its rates: a line for each figure."""
    lines = [["value", "of", "measured"], ["--:", "---", "---"]]
    lines += [
        [f"{share['value']:.3g}", share["of"], share["measured"] or "no, assumed"]
        for share in shares().values()
    ]
    return _table(lines)


def check() -> str:
    """Measured runs beside their plans: a line for each stage of each."""
    lines = [["stage", "on", "measured, s", "planned, s", "ratio"]]
    lines.append(["---", "---", "--:", "--:", "--:"])
    lines += [
        [one.stage, one.of, f"{one.measured:.3g}", f"{one.planned:.3g}", f"{one.ratio:.2f}"]
        for one in checked()
    ]
    return _table(lines)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{float(f'{1e3 * seconds:.3g}'):g}"


def _table(lines: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


TABLES = {
    "steps": (ROOT / "docs" / "gpu.md", steps),
    "scales": (ROOT / "docs" / "gpu.md", scales),
    "figures": (ROOT / "docs" / "planning.md", figures),
    "check": (ROOT / "docs" / "planning.md", check),
    "plans": (ROOT / "docs" / "planning.md", planned),
    "pages": (ROOT / "docs" / "browser.md", lambda: _table(pages())),
    "people": (ROOT / "docs" / "browser.md", lambda: _table(people())),
    "memory": (ROOT / "docs" / "browser.md", lambda: _table(memory())),
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
