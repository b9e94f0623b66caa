"""`saelab diff`: which latents of a crosscoder its sites or models share."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from saelab.cli.options import Positional
from saelab.cli.parse import parse
from saelab.config import Config, Heading

if TYPE_CHECKING:
    from saelab.analysis.sharing.records import Sharing
    from saelab.training.run import Run


class DiffArguments(Config):
    """Say which latents of a crosscoder its sites or models share, and which are specific to one.

    A latent is specific to a site where its decoder row is at least five times as long as at every
    other, and shared where no row is below 0.8 of the longest (arXiv 2504.02922). A specific latent
    is genuine if the data agree: the scale at which it would help at another site is near zero, in
    what is missed there (`error`, below 0.2) and in what is written there (`whole`, below 0.5).
    Under an L1 penalty many specific latents are not.

    Measured on rows held back from training, without a model. Written to sharing.h5 in the run; the
    browser's Shared page shows it.

        saelab train crosscoder --activations STORE --beside OTHER --site blocks.2.hook_resid_post
            --d-sae 1024 --n-tokens 2000000 --out runs/diff
        saelab diff runs/diff
    """

    run: Annotated[Path, Positional("RUN"), Heading("Input")]
    """The run's directory."""
    n_tokens: int = Field(default=50_000, gt=0)
    """Rows to measure on, at most as many as training held back."""
    top: Annotated[int, Heading("Output")] = Field(default=8, gt=0)
    """Number of latents to print for each site, the most frequent first."""
    device: Annotated[str, Heading("Machine")] = "auto"
    """cpu, cuda, ...; auto takes the GPU if there is one."""
    json_: Annotated[bool, Heading("Output")] = False
    """Print JSON instead of tables."""


def main(arguments: list[str]) -> int:
    """Parse and run."""
    args = parse(DiffArguments, "diff", arguments)
    # Imported here, so that --help does not wait for torch.
    from saelab.analysis.sharing.measure import measure_sharing
    from saelab.lm.load import resolve_device
    from saelab.training.run import Run

    run = Run(args.run)
    found, path = measure_sharing(run, n_tokens=args.n_tokens, device=resolve_device(args.device))
    if args.json_:
        print(json.dumps(_values(found, path), indent=2, allow_nan=False))
        return 0
    _print(run, found, args.top)
    print(path)
    return 0


def _values(found: "Sharing", path: Path) -> dict[str, Any]:
    latents = [found.record(latent) for latent in range(len(found))]
    return {"path": str(path), "summary": found.summary(), "latents": latents}


def _print(run: "Run", found: "Sharing", top: int) -> None:
    from rich.table import Table

    from saelab.cli.tables import wide_console
    from saelab.console import cells

    console, summary = wide_console(), found.summary()
    sites = Table(title="Latents of each site", title_justify="left", box=None)
    for name in ("site", "FVU", "specific", "genuine"):
        sites.add_column(name, justify="left" if name == "site" else "right")
    for row in summary["sites"]:
        values = (f"{row['fvu']:.4f}", str(row["specific"]), str(row["genuine"]))
        sites.add_row(*cells(row["site"], *values))
    console.print(sites)
    console.print(
        f"{summary['shared']} latents are shared by all sites, {summary['between']} are between, "
        f"{summary['silent']} silent on {summary['n_rows']} rows.\n",
        markup=False,
    )
    named = _names(run)
    for number, name in enumerate(found.sites):
        chosen = found.specific(number) & (found.n_fired > 0)
        order = [i for i in (-found.n_fired).argsort(kind="stable").tolist() if chosen[i]]
        if not order:
            continue
        table = Table(title=f"Specific to {name}", title_justify="left", box=None)
        for title in ("latent", "fires", "norms", "error", "whole", "what it fires on"):
            table.add_column(title, justify="left" if title[0] == "w" and "f" in title else "right")
        for latent in order[:top]:
            table.add_row(*cells(*_row(found, latent), named(latent)))
        console.print(table)


def _row(found: "Sharing", latent: int) -> tuple[str, ...]:
    norms = " ".join(f"{norm:.2f}" for norm in found.norm[latent].tolist())
    ratios = (found.error_ratio[latent], found.whole_ratio[latent])
    return (str(latent), str(found.n_fired[latent]), norms, *(f"{r:.2f}" for r in ratios))


def _names(run: "Run") -> Any:  # noqa: ANN401 - from a latent to a text
    """What each latent fires on, if the run's features were collected."""
    if not run.features_path.is_file():
        return lambda _: ""
    from saelab.analysis.records import Features

    return Features(run.path).fires_on
