"""What maps of each rank carry, as an SVG and a table; and all pairs of sites."""

import math
from collections.abc import Sequence

from feature_browser.draw.boxes import boxed
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.numbers import UNKNOWN, count, percent, real
from feature_browser.draw.pictures import words
from feature_browser.draw.tables import Column, anchor, cell, metered, part, table, unseen
from feature_browser.pages.transport.address import TransportAddress
from saelab.analysis.transport.records import SiteTransport, Spliced

WIDE, TALL, LEFT, TOP, BASE = 400, 204, 34, 10, 166
SAID = {
    "mean": "the mean, everywhere",
    "identity": "the earlier activation, shifted by the means' difference",
    "transported": "the transported activation",
    "sae": "the SAE's reconstruction",
    "sae-transported": "its reconstruction of what is carried",
}


def ranks_box(found: SiteTransport) -> Html:
    """The share that maps of each rank carry, and whether the model runs on it."""
    columns = [
        Column("Rank", "directions that the map uses", numeric=True),
        Column("R²", "of the later site, on documents that the fit did not see", numeric=True),
        Column("Efficiency", "share of what any map of the rank can explain", numeric=True),
        Column("CE recovered", "by the model on transported activations", numeric=True),
    ]
    rows = [_rank_row(found, rank) for rank in found.ranks.tolist()]
    about = html(
        '<p class="sub">About {size} of {all} directions are carried (linear transport subspace).'
        "</p>",
        size=f"{found.size:.0f}", all=len(found.rho),
    )  # fmt: skip
    body = joined([_picture(found), about, table(columns, rows, "Maps by rank")])
    spliced = " · ◆ CE recovered" if found.splices else ""
    hint = f"━ R² · ┅ efficiency{spliced}"
    return boxed("What maps of each rank carry", body, hint=hint)


def _rank_row(found: SiteTransport, rank: int) -> list[Html]:
    r2, spliced = float(found.curves["r2"][rank]), found.spliced("transported", rank)
    return [
        cell(rank),
        metered(real(r2, 3), r2),
        cell(percent(found.efficiency(rank))),
        _recovered(spliced),
    ]


def _recovered(spliced: Spliced | None) -> Html:
    if spliced is None:
        return html('<span class="sub" title="the model was not run">{t}</span>', t=UNKNOWN)
    low, high = spliced.low, spliced.high
    ends = "no interval"
    ends_saved = EMPTY
    if low is not None and high is not None:
        ends = f"95 % interval {percent(low)} to {percent(high)}"
        ends_saved = joined([unseen(percent(low), "low"), unseen(percent(high), "high")])
    return html(
        '<span title="{ends}">{t}{unseen}</span>',
        ends=ends, t=cell(percent(spliced.recovered)), unseen=ends_saved,
    )  # fmt: skip


def model_box(found: SiteTransport) -> Html:
    """What the model makes of transported activations and of everything else in their place."""
    title = "Does the model run on it?"
    rows = [
        [cell(SAID[s.name]), cell(real(s.ce, 3)), _recovered(s)]
        for s in found.splices
        if s.name in SAID and s.rank in (None, found.ranks[-1])
    ]
    if not rows:
        reason = found.facts.get("no_splice")
        text = reason if isinstance(reason, str) else "The model was not run."
        return boxed(title, html('<p class="sub">{text}</p>', text=text))
    columns = [
        Column("The model on", "what replaces the later site at every token"),
        Column("CE", "nats per token", numeric=True),
        Column("CE recovered", "0 % is the mean, 100 % the model alone", numeric=True),
    ]
    return boxed(title, table(columns, rows, title))


def _picture(found: SiteTransport) -> Html:
    """R² (solid) and efficiency (dashed) by rank, on a log scale; CE recovered as diamonds."""
    most = len(found.rho)
    ranks = sorted({round(most ** (i / 60)) for i in range(61)})
    lines = [
        _line([(r, float(found.curves["r2"][r])) for r in ranks], most, "pos"),
        _line([(r, found.efficiency(r)) for r in ranks], most, "neg dashed"),
    ]
    spliced = [s for s in found.splices if s.name == "transported" and s.rank is not None]
    marks = [_diamond(_x(s.rank or 1, most), _y(s.recovered), s) for s in spliced]
    texts = [words(_x(r, most), BASE + 15, str(r), "middle") for r in _ticks(most)]
    return html(
        '<svg class="chart" viewBox="0 0 {w} {h}" role="img" aria-label="{label}">{grid}{lines}'
        "{marks}{texts}{title}</svg>",
        w=WIDE, h=TALL, grid=_grid(), lines=joined(lines), marks=joined(marks),
        texts=joined(texts), title=words((LEFT + WIDE) / 2, BASE + 30, "rank, log scale", "middle"),
        label="R² and efficiency of maps by their rank; the table below has the figures",
    )  # fmt: skip


def _ticks(most: int) -> Sequence[int]:
    powers = [4**i for i in range(12) if 4**i <= most]
    # The largest rank replaces a power that it would touch.
    return [
        *(p for p in powers if most / p > 1.6 or p == most),
        *([] if most in powers else [most]),
    ]


def _x(rank: int, most: int) -> float:
    return LEFT + math.log(rank) / max(math.log(most), 1e-9) * (WIDE - LEFT - 14)


def _y(share: float) -> float:
    return BASE - min(1.0, max(0.0, share)) * (BASE - TOP)


def _line(points: Sequence[tuple[int, float]], most: int, kind: str) -> Html:
    path = " ".join(f"{_x(rank, most):.1f},{_y(share):.1f}" for rank, share in points)
    return html('<polyline class="curve {kind}" points="{path}"/>', kind=kind, path=path)


def _diamond(x: float, y: float, spliced: Spliced) -> Html:
    tip = f"rank {spliced.rank}\nCE recovered {percent(spliced.recovered)}"
    return html(
        '<path class="splice" d="M{x} {y}l4.5 4.5l-4.5 4.5l-4.5 -4.5z" data-tip="{tip}"/>',
        x=f"{x:.1f}", y=f"{y - 4.5:.1f}", tip=tip,
    )  # fmt: skip


def _grid() -> Html:
    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = _y(share)
        parts.append(
            html(
                '<line class="grid" x1="{a}" x2="{b}" y1="{y}" y2="{y}"/>',
                a=LEFT, b=WIDE - 14, y=f"{y:.1f}",
            )
        )  # fmt: skip
        parts.append(words(LEFT - 6, y + 3.5, f"{share:g}", "end"))
    return joined(parts)


def pairs_box(
    every: Sequence[SiteTransport], now: SiteTransport, address: TransportAddress
) -> Html:
    """All pairs of sites of the run side by side; the current one is marked."""
    if len(every) < 2:
        return EMPTY
    columns = [
        Column("From"),
        Column("To"),
        Column("Carried", "share of the latents with a verdict", numeric=True),
        Column("Median R²", "of the latents, on the tokens where they fire", numeric=True),
        Column("Median, identity", "R² of the earlier activation unchanged", numeric=True),
        Column("R²", "of the whole later site, at full rank", numeric=True),
        Column("Directions", "size of the linear transport subspace", numeric=True),
        Column("CE recovered", "by the model on transported activations", numeric=True),
    ]
    rows = [_pair_row(one, address, chosen=one is now) for one in every]
    return boxed("Pairs of sites", table(columns, rows, "Pairs of sites"))


def _pair_row(one: SiteTransport, address: TransportAddress, *, chosen: bool) -> list[Html]:
    limit = float(address.limit)
    summary = one.summary(limit)
    decided = sum(summary[name] for name in ("carried", "computed", "undecided"))
    share = percent(summary["carried"] / decided) if decided else UNKNOWN
    lead = anchor(address.to(pair=one.path.stem, page=1, box="").href, one.earlier)
    return [
        html("<b>{a}</b>", a=lead) if chosen else lead,
        cell(one.later),
        cell(share),
        cell(real(summary["median_r2"]["latents"])),
        cell(real(summary["median_r2"]["identity"])),
        cell(real(summary["r2"], 3)),
        html("{n} of {all}", n=cell(count(round(one.size))), all=part(len(one.rho), "of")),
        _recovered(one.spliced("transported")),
    ]
