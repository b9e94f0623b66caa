"""What `saelab transport` prints."""

from collections.abc import Iterator, Sequence

import numpy as np

from saelab.analysis.transport.records import VERDICTS, SiteTransport, Spliced
from saelab.cli.tables import print_section, wide_console
from saelab.evaluation.measurement import Column
from saelab.evaluation.report import Section

SAID = {
    "plain": "the model alone",
    "mean": "the mean at every token",
    "identity": "the earlier activation, unchanged but for the mean",
    "transported": "the transported activation",
    "sae": "the SAE's reconstruction",
    "sae-transported": "the SAE's reconstruction of the transported activation",
}


def print_transport(found: Sequence[SiteTransport], *, limit: float, top: int) -> None:
    """Every pair of sites: its latents, its maps and the live model."""
    console = wide_console()
    for one in found:
        console.print(f"\n[bold]{one.earlier} to {one.later}[/bold]", highlight=False)
        facts = one.facts
        console.print(
            f"{facts['n_rows']} rows of {facts['n_apart']} {facts['apart']} in "
            f"{len(facts['folds'])} folds; {facts['n_left_out']} rows left out (special tokens, "
            f"massive activations); ridge {facts['ridge']:g}.",
            soft_wrap=True,
        )
        for section in (*_latents(one, limit, top), _maps(one), _splices(one)):
            print_section(console, section)


def _latents(one: SiteTransport, limit: float, top: int) -> Iterator[Section]:
    if not len(one):
        return
    verdict, best = one.verdict(limit), one.best
    known = ~np.isnan(best)
    count = [f"{one.count(name, limit)} {name}" for name in VERDICTS]
    rows: list[tuple[str, ...]] = [
        (name, *_spread(column[known], limit))
        for name, column in {
            "transported": best,
            "identity": one.identity,
            "mean": one.mean,
            "random direction": one.direction,
            "other latent": one.other,
        }.items()
    ]
    heads = ("R² on a latent's tokens", "10 %", "median", "90 %", f"at least {limit:g}")
    yield Section(
        "Latents",
        tuple(Column(name, number=name != heads[0]) for name in heads),
        rows,
        f"Of {len(one)}: {', '.join(count)} (95 % intervals above or below {limit:g}).",
        [],
    )
    for name, order in (("carried", -best), ("computed", best)):
        mine = np.flatnonzero(verdict == VERDICTS.index(name))
        shown = mine[np.argsort(order[mine], kind="stable")][:top]
        columns = ("latent", "R²", "interval", "identity", "other latent", "fires on")
        yield Section(
            f"Most clearly {name}",
            tuple(Column(c, number=True) for c in columns),
            [_latent(one, int(i)) for i in shown],
            "",
            [],
        )


def _spread(values: np.ndarray, limit: float) -> tuple[str, ...]:
    values = values[~np.isnan(values)]
    if not len(values):
        return "-", "-", "-", "-"
    low, middle, high = np.quantile(values, (0.1, 0.5, 0.9))
    return *(f"{v:.2f}" for v in (low, middle, high)), f"{(values >= limit).mean():.0%}"


def _latent(one: SiteTransport, i: int) -> tuple[str, ...]:
    return (
        str(i),
        f"{one.best[i]:.3f}",
        f"{one.low[i]:.2f} to {one.high[i]:.2f}",
        f"{one.identity[i]:.2f}",
        f"{one.other[i]:.2f}",
        str(one.n_fired[i]),
    )


def _maps(one: SiteTransport) -> Section:
    heads = ("rank", "R²", "R², whitened", "efficiency", "cut by SVD", "bound")
    rows: list[tuple[str, ...]] = [
        (
            str(r),
            f"{one.curves['r2'][r]:.3f}",
            f"{one.curves['whitened'][r]:.3f}",
            f"{one.efficiency(r):.1%}",
            f"{one.efficiency(r, svd=True):.1%}",
            f"{one.curves['ceiling'][r]:.3f}",
        )
        for r in one.ranks.tolist()
    ]
    about = (
        "R² on documents that the fit did not see; whitened: every direction of the later site "
        "counts alike. The bound is the most that any map of the rank explains (whitened), on the "
        "rows of the fit; efficiency is the map's share of it. About "
        f"{one.size:.0f} of {len(one.rho)} directions are carried (linear transport subspace; "
        f"{one.fitted_size:.0f} on the rows of the fit)."
    )
    return Section("Maps", tuple(Column(name, number=True) for name in heads), rows, about, [])


def _splices(one: SiteTransport) -> Section:
    heads = ("later site replaced by", "rank", "CE", "CE recovered", "interval")
    columns = tuple(Column(name, number=name != heads[0]) for name in heads)
    about = "0 % is the mean at every token, 100 % the model alone."
    rows: list[tuple[str, ...]] = [_splice(splice) for splice in one.splices]
    return Section("The live model on transported activations", columns, rows, about, [])


def _splice(splice: Spliced) -> tuple[str, ...]:
    ends = ""
    if splice.low is not None and splice.high is not None:
        ends = f"{splice.low:.1%} to {splice.high:.1%}"
    rank = "" if splice.rank is None else str(splice.rank)
    return SAID[splice.name], rank, f"{splice.ce:.4f}", f"{splice.recovered:.1%}", ends
