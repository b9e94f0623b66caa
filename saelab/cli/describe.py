"""The description lengths of a sweep's SAEs, as a table, a file and a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saelab.evaluation.mdl_sweep import LengthCurve
    from saelab.training.run import Run

NAME = "description_length"


def describe(runs: "Sequence[Run]", out: Path, *, fvu: float | None, device: str) -> None:
    """Measure, print, and write `description_length.json` and `.html` below `out`."""
    from saelab.evaluation.mdl_sweep import length_curve
    from saelab.figures.evaluation import length_curve_figure
    from saelab.files import atomic_write, atomic_write_json

    curve = length_curve(runs, fvu=fvu, device=device)
    atomic_write_json(out / f"{NAME}.json", curve.values())
    picture = length_curve_figure(curve).to_html(include_plotlyjs=True)
    atomic_write(out / f"{NAME}.html", picture.encode())
    _print(curve)
    print(out / f"{NAME}.html")


def _print(curve: "LengthCurve") -> None:
    best = curve.best
    print(f"\nBits per token to describe {curve.n_rows} held-back rows at FVU {curve.fvu:.4f};")
    print(f"without an SAE {curve.row_bits:.1f}. Values: precision of the codes, per sign.")
    print("Rest: what an SAE with a larger FVU misses.\n")
    width = max(len(run.name) for run in curve.runs)
    print(
        f"{'':<{width}} {'latents':>8} {'k':>6} {'L0':>7} {'FVU':>7} {'dead':>6} {'values':>7} "
        f"{'codes':>8} {'rest':>8} {'bits':>8}"
    )
    for run in sorted(curve.runs, key=lambda run: (run.d_sae, run.k or run.l0, run.name)):
        k = "-" if run.k is None else f"{run.k:g}"
        print(
            f"{run.name:<{width}} {run.d_sae:>8} {k:>6} {run.l0:>7.2f} {run.fvu:>7.4f} "
            f"{run.dead:>6} {run.n_bins:>7} {run.code_bits:>8.1f} {run.rest_bits:>8.1f} "
            f"{run.bits:>8.1f}{'  shortest' if run is best else ''}"
        )
