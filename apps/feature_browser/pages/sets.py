"""The set that a run belongs to: its runs by layer, and the model with all of them at once.

torch is imported where the tables are made, so that the page can be drawn without it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from feature_browser.data.address import AbstractAddress, link
from feature_browser.data.catalogue import Catalogue, RunCard
from feature_browser.data.reading import stamp
from feature_browser.draw.boxes import alone, message
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.numbers import count
from feature_browser.draw.sections import section_table
from feature_browser.draw.tables import Column, anchor, cell, table
from feature_browser.pages import Page
from feature_browser.shell.canvas import palette, plot, show
from saelab.training.sets import Member, RunSet, is_set

if TYPE_CHECKING:
    from saelab.evaluation.set_results import SetEvaluation


@dataclass(frozen=True, kw_only=True)
class SetAddress(AbstractAddress):
    """The page has no parameters except the run."""

    view = "set"


def set_view(catalogue: Catalogue, card: RunCard, address: SetAddress) -> None:
    """Draw the set, with a link to each of its runs."""
    del address
    place = card.path.parent
    if not is_set(place):
        show(alone(_no_set(card)), "set")
        return
    runs = RunSet(place)
    links = _links(catalogue, place)
    file = place / "evaluation.json"
    show(alone(_headline(runs)), "set")
    if file.is_file():
        _draw_measured(_read(file, stamp(file)), links)
        return
    command = html("<pre><code>saelab evaluate {p}</code></pre>", p=place.as_posix())
    todo = html('<p class="sub">Not measured yet. Run</p>{c}', c=command)
    show(alone(html("{todo}{t}", todo=todo, t=_members(runs.manifest.members, links))), "members")


def _draw_measured(found: "SetEvaluation", links: dict[str, str]) -> None:
    from saelab.evaluation.set_results import set_sections
    from saelab.figures.evaluation import set_figure

    layers, together = set_sections(found)
    show(alone(section_table(together)), "together")
    plot(set_figure(found, palette()), "layers")
    show(alone(section_table(layers, lambda name, text: _linked(name, text, links))), "members")


@st.cache_resource(max_entries=8, show_spinner="Reading what was measured …")
def _read(file: Path, at: int) -> "SetEvaluation":
    from saelab.evaluation.set_results import read_set_evaluation

    del at  # part of the cache's key only
    return read_set_evaluation(file)


def _links(catalogue: Catalogue, place: Path) -> dict[str, str]:
    """Links to the runs of the set that can be shown, by their names in it."""
    return {
        card.path.name: link("latent", run=card.name)
        for card in catalogue.runs.values()
        if card.path.parent == place
    }


def _linked(column: str, text: str, links: dict[str, str]) -> Html:
    return anchor(links[text], text) if column == "run" and text in links else cell(text)


def _headline(runs: RunSet) -> Html:
    manifest = runs.manifest
    missing = [
        m.name for m, there in zip(manifest.members, runs.finished, strict=True) if not there
    ]
    notice = html(
        '<p class="notice">Not trained yet: {names}. The same saelab train sweep goes on.</p>',
        names=", ".join(missing),
    )
    return html(
        '<h1 class="headline">The set {name}</h1><p class="sub">{recipe} · {model} · {n} runs of '
        "{layers} layers</p>{notice}",
        name=runs.path.resolve().name,
        recipe=manifest.recipe,
        model=manifest.model.name,
        n=count(len(manifest.members)),
        layers=count(manifest.model.n_layers),
        notice=notice if missing else EMPTY,
    )


def _members(members: tuple[Member, ...], links: dict[str, str]) -> Html:
    rows = [
        [cell(m.layer), cell(m.part), _linked("run", m.name, links), cell(m.reads), cell(m.writes)]
        for m in members
    ]
    columns = [Column("layer", numeric=True), *map(Column, ("part", "run", "reads", "writes"))]
    return joined([html("<h2>Its runs</h2>"), table(columns, rows, "Runs of the set")])


def _no_set(card: RunCard) -> Html:
    return message(
        f"{card.name} belongs to no set",
        "A set holds a transcoder of every MLP, or also an SAE of every attention, of one model. A "
        'sweep file with a "recipe" makes one:',
        command="saelab train sweep FILE --out runs/NAME",
    )


PAGE = Page(
    "Set",
    SetAddress,
    set_view,
    concerns=lambda card: is_set(card.path.parent),
    asks="How good is the set of SAEs that this run belongs to, all at once?",
)
