"""All runs beside each other: their figures with intervals, and each against L0."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import streamlit as st

from feature_browser.data.address import AbstractAddress, link, one_of, parameter
from feature_browser.data.catalogue import Catalogue, RunCard
from feature_browser.data.reading import stamp
from feature_browser.draw.boxes import alone, message
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.numbers import UNKNOWN, activation, count
from feature_browser.draw.tables import Column, anchor, cell, choice, part, table
from feature_browser.pages import Page
from feature_browser.shell.canvas import change, palette, plot, search_field, show, tell
from saelab.analysis.scoreboard import (
    L0,
    FigureEstimate,
    Scoreboard,
    in_words,
    less_is_better,
    scoreboard,
)

SEARCH = "search-runs"
AT_FIRST = 5
MOST_SHOWN = 12


MIXED = (
    "These runs read {n} sites. One site's activations are easier to reconstruct than another's: "
    "the front is fair among runs of one site, so search for one."
)


@dataclass(frozen=True, kw_only=True)
class ScoreboardAddress(AbstractAddress):
    """The runs that `q` leaves, sorted by the figure `sort`.

    `figures` names those of the table, with commas between; `plot` is drawn against L0, and
    `better` says which end of it is.
    """

    view = "scoreboard"
    q: str = parameter("")
    sort: str = parameter("run")
    figures: str = parameter("")
    plot: str = parameter("")
    better: str = one_of("", "less", "more")


def scoreboard_view(catalogue: Catalogue, card: RunCard | None, address: ScoreboardAddress) -> None:
    """Draw the search, the table, and the chosen figure against L0."""
    del card
    cards = {name: one for name, one in catalogue.runs.items() if _wanted(one, address.q)}
    found = _measured(tuple((name, one.path, _stamps(one.path)) for name, one in cards.items()))
    shown = _figures(found, address)
    with st.container(key="controls", horizontal=True):
        search_field(
            SEARCH,
            address.q,
            label="Search runs by name, variant, site and model",
            hint="Search runs: name, variant, site, model",
            width=300,
            on_change=_searched,
        )
        st.download_button(
            "Export as CSV",
            partial(found.csv, None),
            file_name="scoreboard.csv",
            on_click="ignore",
            help="All figures of these runs, not only those of the table",
            key="scoreboard-csv",
        )
    problems = joined(html('<p class="notice">{p}</p>', p=p) for p in found.problems)
    if not found.names:
        show(alone(joined([problems, _nothing(catalogue, address)])), "scoreboard")
        return
    show(
        alone(joined([problems, _headline(found), figures_table(cards, found, shown, address)])),
        "scores",
    )
    drawn = _drawn(found, shown, address)
    if drawn:
        show(alone(_plot_choice(found, shown, address, drawn)), "plotted")
        sites = {cards[run].site for run in found.tradeoff(drawn).points}
        if len(sites) > 1:
            tell(MIXED.format(n=len(sites)), "mixed-sites")
        less = None if not address.better else address.better == "less"
        plot(found.tradeoff(drawn, less=less).figure(palette()), "tradeoff")
    show(alone(_choice_of_figures(found, shown, address)), "figures")


def _searched() -> None:
    text = st.session_state[SEARCH]
    change(ScoreboardAddress, lambda now: now.to(q=text))


def _wanted(card: RunCard, text: str) -> bool:
    """Whether every word of the search is in the run's name, variant, site or model."""
    about = f"{card.name} {card.variant} {card.site} {card.model}".lower()
    return all(word in about for word in text.lower().split())


def _stamps(path: Path) -> tuple[tuple[str, int], ...]:
    return tuple((file.name, stamp(file)) for file in sorted(path.glob("evaluation/*.json")))


@st.cache_resource(max_entries=8, show_spinner="Reading what was measured …")
def _measured(runs: tuple[tuple[str, Path, tuple[tuple[str, int], ...]], ...]) -> Scoreboard:
    return scoreboard({name: path for name, path, _ in runs})


def _figures(found: Scoreboard, address: ScoreboardAddress) -> list[str]:
    """The figures of the table: those of the address, else the first ones."""
    asked = [name for name in address.figures.split(",") if name in found.names]
    return asked[:MOST_SHOWN] or found.names[:AT_FIRST]


def _drawn(found: Scoreboard, shown: list[str], address: ScoreboardAddress) -> str:
    """The figure that is drawn against L0; empty if no run has both."""
    asked = [address.plot, *shown]
    names = (name for name in asked if name != L0 and found.tradeoff(name).points)
    return next(names, "")


def _headline(found: Scoreboard) -> Html:
    return html(
        '<h1 class="headline">{n} runs, {m} figures</h1><p class="sub">Brackets are 95 % '
        "intervals, where a result has one: its own, or over the features, tasks or letters that "
        "it is the mean of. A heading sorts.</p>",
        n=count(len(found.runs)), m=count(len(found.names)),
    )  # fmt: skip


def _nothing(catalogue: Catalogue, address: ScoreboardAddress) -> Html:
    if address.q.strip() and catalogue.runs:
        return message("No run is found", "No run with figures has these words; change the search.")
    return message(
        "Nothing is measured yet",
        "A run's figures stand here once it is evaluated:",
        command="saelab evaluate RUN",
    )


def figures_table(
    cards: dict[str, RunCard], found: Scoreboard, shown: list[str], address: ScoreboardAddress
) -> Html:
    """The runs with the figures `shown`, sorted as the address says."""
    columns = [
        Column("Run", "", href=address.to(sort="run").href, sorted=address.sort == "run",
               rising=True),
        Column("Variant"), Column("Site"),
        *(
            Column(in_words(name), _help(name), numeric=True, href=address.to(sort=name).href,
                   sorted=address.sort == name, rising=less_is_better(name))
            for name in shown
        ),
    ]  # fmt: skip
    rows = []
    for run in _sorted(found, address.sort):
        figures = found.runs[run]
        name = anchor(link("health", run=run), run)
        values = [_cell(figures.get(name)) for name in shown]
        about = (cards[run].variant, cards[run].site)
        rows.append([name, *(html('<span class="sub">{v}</span>', v=v) for v in about), *values])
    return table(columns, rows, "Runs and their figures")


def _sorted(found: Scoreboard, sort: str) -> list[str]:
    """The runs, the best first; those without the figure last."""
    column = found.column(sort)
    if not column:
        return sorted(found.runs)
    sign = 1 if less_is_better(sort) else -1
    have = sorted(column, key=lambda run: (sign * column[run].value, run))
    return [*have, *sorted(found.runs.keys() - column.keys())]


def _cell(one: FigureEstimate | None) -> Html:
    if one is None:
        return cell(UNKNOWN)
    if one.low is None or one.high is None:
        return cell(activation(one.value))
    return html(
        '{v}<br><span class="sub" title="over {n}">[{low}, {high}]</span>',
        v=cell(activation(one.value)),
        n=count(one.n) if one.n > 1 else "its own interval",
        low=part(activation(one.low), "low"),
        high=part(activation(one.high), "high"),
    )


def _help(name: str) -> str:
    return f"{name}; {'less' if less_is_better(name) else 'more'} is better"


def _plot_choice(
    found: Scoreboard, shown: list[str], address: ScoreboardAddress, drawn: str
) -> Html:
    names = [name for name in shown if name != L0 and found.tradeoff(name).points]
    options = [(in_words(name), address.to(plot=name, better=""), name == drawn) for name in names]
    less = less_is_better(drawn) if not address.better else address.better == "less"
    ends = [
        (end, address.to(plot=drawn, better=end), less == (end == "less"))
        for end in ("less", "more")
    ]
    return joined([choice("against L0", options), choice("better is", ends)])


def _choice_of_figures(found: Scoreboard, shown: list[str], address: ScoreboardAddress) -> Html:
    """Links that add a figure to the table, or take it out."""
    options = []
    for name in found.names:
        left = [n for n in shown if n != name] if name in shown else [*shown, name]
        options.append((in_words(name), address.to(figures=",".join(left)), name in shown))
    hint = EMPTY
    if len(shown) >= MOST_SHOWN:
        hint = html('<p class="sub">The table has room for {n}; take one out first.</p>',
                    n=MOST_SHOWN)  # fmt: skip
    return html(
        '<details class="pick"><summary>choose figures</summary>{hint}{links}</details>',
        hint=hint,
        links=choice("", options),
    )


PAGE = Page(
    "Scoreboard",
    ScoreboardAddress,
    scoreboard_view,
    asks="How do all runs compare, number by number?",
)
