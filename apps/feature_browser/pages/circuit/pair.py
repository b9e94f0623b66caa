"""Two graphs side by side: of two prompts, or of two targets of one prompt."""

from collections import defaultdict
from pathlib import Path

import streamlit as st

from feature_browser.data.catalogue import RunCard
from feature_browser.data.labels import Name
from feature_browser.draw.boxes import alone, boxed
from feature_browser.draw.markup import EMPTY, Html, html, joined, running
from feature_browser.draw.names import named
from feature_browser.draw.numbers import UNKNOWN, count, flow_text, percent, real
from feature_browser.draw.tables import Column, cell, table
from feature_browser.pages.circuit.address import CircuitAddress
from feature_browser.pages.circuit.graphs import circuits_of, summary
from feature_browser.pages.circuit.node_cards import filter_line, node_card, number_in, ratio_in
from feature_browser.pages.circuit.picture import legend_of, svg_of, zoom_buttons
from feature_browser.pages.circuit.scene import GraphScene
from feature_browser.shell.canvas import change, show
from saelab.config import UsageError
from saelab.console import visible

MOST_ROWS = 40
OTHER_SAES = (
    "The two graphs replace other parts of the model by SAEs: a node that only one of them has "
    "differs for that reason."
)
NONE = ""


def beside_field(card: RunCard, address: CircuitAddress) -> None:
    """The choice of a second graph of the run; nothing if it has only one."""
    others = {path.stem: _title(path) for path in circuits_of(card) if path.stem != address.graph}
    if not others:
        return
    options = {NONE: "no other graph", **others}
    st.session_state["circuit-beside"] = address.beside if address.beside in options else NONE
    st.selectbox(
        "Beside it", list(options), key="circuit-beside", on_change=_chosen, width=360,
        format_func=lambda name: str(options.get(name, name)),
    )  # fmt: skip


def _chosen() -> None:
    name = st.session_state["circuit-beside"]
    change(CircuitAddress, lambda now: now.to(beside=name, node=""))


def _title(path: Path) -> str:
    try:
        found = summary(path)
    except UsageError:
        return path.stem
    words = " ".join(visible(token).strip() for token in found.tokens[-6:])
    return f"{found.facts.get('target', path.stem)} · … {words}"


def draw_pair(first: GraphScene, second: GraphScene) -> None:
    """Both pictures, the picked node in each, and what each node gives in both."""
    scenes = (first, second)
    cards = joined(
        _card(scene, name) for scene, name in zip(scenes, ("First", "Second"), strict=True)
    )
    picked = EMPTY
    if first.address.node:
        nodes = joined(node_card(scene) for scene in scenes)
        picked = html('<div class="two even">{nodes}</div>', nodes=nodes)
    pictures = html(
        '{tools}<div class="two even">{cards}</div>{legend}{picked}',
        tools=zoom_buttons(), cards=cards, picked=picked, legend=legend_of(scenes),
    )  # fmt: skip
    show(html('<div class="page wide circuit pair">{p}</div>', p=pictures), "circuit-pair")
    show(alone(_differences(first, second)), "circuit-differences")


def _card(scene: GraphScene, name: str) -> Html:
    found, facts = scene.found, scene.found.graph.facts
    tokens = joined(
        html('<span class="word">{t}</span> ', t=running(visible(token).strip() or "␣"))
        for token in found.graph.tokens
    )
    errors = number_in(facts, "scores", "error_influence")
    faithful = ratio_in(facts, "faithfulness")
    missed = UNKNOWN if errors is None else percent(errors)
    trust = f"SAE errors {missed}, faithfulness {real(faithful)}"
    return html(
        '<section class="card"><h2>{name}<span class="hint">{trust}</span></h2>'
        '<h3 class="headline"><a href="{only}">{target} = {value}</a></h3>'
        '<p class="text prompt" dir="auto">{tokens}</p>{filter}{svg}</section>',
        name=name, trust=trust, target=facts.get("target", "the target"), tokens=tokens,
        value=real(found.graph.nodes[-1].value), filter=filter_line(scene), svg=svg_of(scene),
        only=scene.address.to(graph=found.name, beside="").href,
    )  # fmt: skip


def _differences(first: GraphScene, second: GraphScene) -> Html:
    """What each node gives the two targets, over all its tokens; the largest differences first."""
    both = [_given(scene) for scene in (first, second)]
    names = {**both[1], **both[0]}
    shared = [name for name in names if all(name in part for part in both)]
    rows = sorted(
        names,
        key=lambda name: -abs(both[0].get(name, _NOTHING)[0] - both[1].get(name, _NOTHING)[0]),
    )
    columns = [
        Column("Node"), Column("Called"), Column("At, in the first"), Column("At, in the second"),
        Column("Gives the first", "in the units of its target, over all paths", numeric=True),
        Column("Gives the second", numeric=True), Column("Difference", numeric=True),
    ]  # fmt: skip
    cells = [_row(name, names[name][2], both) for name in rows[:MOST_ROWS]]
    hint = (
        f"{count(len(shared))} in both · {count(len(both[0]) - len(shared))} only in the first · "
        f"{count(len(both[1]) - len(shared))} only in the second"
    )
    body = table(columns, cells, "What nodes give in both graphs")
    apart = [scene.found.saes for scene in (first, second)]
    if set(apart[0]) != set(apart[1]):
        body = joined([html('<p class="notice">{t}</p>', t=OTHER_SAES), body])
    return boxed("What differs", body, hint=hint)


_Given = dict[str, tuple[float, list[str], Name]]
_NOTHING: tuple[float, list[str], Name] = (0.0, [], Name())


def _given(scene: GraphScene) -> _Given:
    """By node without its token: what it gives, at which tokens, and what it is called."""
    found, total, places, called = scene.found, defaultdict(float), defaultdict(list), {}
    for number, node in enumerate(found.graph.nodes[:-1]):
        name = scene.names.what(node)
        total[name] += float(found.given[number])
        if node.position is not None:
            places[name].append(visible(found.token(node)).strip() or "␣")
        called[name] = number
    return {name: (total[name], places[name], _called(scene, called[name])) for name in total}


def _called(scene: GraphScene, number: int) -> Name:
    return scene.names.called(scene.found.graph.nodes[number])


def _row(name: str, called: Name, both: list[_Given]) -> list[Html]:
    parts = [part.get(name) for part in both]
    given = [None if part is None else part[0] for part in parts]
    change = (given[0] or 0.0) - (given[1] or 0.0)
    return [
        cell(name),
        named(called) if called.text else EMPTY,
        *(cell(UNKNOWN if part is None else _places(part[1])) for part in parts),
        *(cell(UNKNOWN if value is None else flow_text(value)) for value in given),
        html(
            '<span class="{sign}-text">{v}</span>',
            sign="neg" if change < 0 else "pos", v=cell(flow_text(change)),
        ),
    ]  # fmt: skip


def _places(words: list[str]) -> str:
    different = list(dict.fromkeys(words))
    return ", ".join(different[:4]) + (
        f" and {len(different) - 4} more" if len(different) > 4 else ""
    )
