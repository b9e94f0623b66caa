"""A run's circuits: the list, or one of them as a graph to prune, pin and export."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import streamlit as st

from feature_browser.data.catalogue import Catalogue, RunCard
from feature_browser.draw.boxes import alone, message
from feature_browser.draw.markup import EMPTY, Html, html
from feature_browser.pages import Page
from feature_browser.pages.circuit.address import CircuitAddress
from feature_browser.pages.circuit.code import circuit_elsewhere
from feature_browser.pages.circuit.explain import explain_form, job_section
from feature_browser.pages.circuit.exports import downloads
from feature_browser.pages.circuit.filters import controls, restricted
from feature_browser.pages.circuit.graph_list import graph_list, nothing
from feature_browser.pages.circuit.graphs import (
    OpenGraph,
    circuits_of,
    graphs_beside,
    open_graph,
    pins_of,
)
from feature_browser.pages.circuit.groups import read_groups, remove_group, save_group
from feature_browser.pages.circuit.interventions import live_section
from feature_browser.pages.circuit.looks import looks_card
from feature_browser.pages.circuit.node_cards import filter_line, headline, node_card, node_table
from feature_browser.pages.circuit.node_names import NodeNames
from feature_browser.pages.circuit.pair import beside_field, draw_pair
from feature_browser.pages.circuit.picture import picture
from feature_browser.pages.circuit.pins import flows, members_of, pins_card
from feature_browser.pages.circuit.request import BETWEEN_SAES, choices, names_of
from feature_browser.pages.circuit.scene import GraphScene
from feature_browser.shell.canvas import STATIC, go_to, show, tell
from saelab.config import UsageError

LABEL, PROBLEM = "circuit-label", "circuit-problem"


def circuit_view(catalogue: Catalogue, card: RunCard, address: CircuitAddress) -> None:
    """Draw the run's list of graphs with the form for another, or the graph of `address`."""
    st.html(STATIC / "page_circuit.css")
    paths, beside = circuits_of(card), graphs_beside(catalogue, card)
    if not (address.graph or address.part or address.job) and len(paths) == 1 and not beside:
        address = address.to(graph=paths[0].stem)
        go_to(address)
    if not address.graph or address.part or address.job:
        _start(catalogue, card, address)
        first = EMPTY if address.job else nothing(card)
        content = graph_list(card, paths, beside, address) if paths or beside else first
        show(content, "circuits")
        return
    found = open_graph(card, address.graph)
    if found is None:
        known = graph_list(card, paths, beside, address) if paths or beside else EMPTY
        show(html("{gone}{known}", gone=_no_such_graph(card, address), known=known), "circuits")
        return
    _graph(catalogue, card, address, found)


def _start(catalogue: Catalogue, card: RunCard, address: CircuitAddress) -> None:
    if card.in_circuits:
        show(alone(html('<h1 class="headline">Explain a prediction</h1>')), "explain-title")
        explain_form(catalogue, card, address)
        if (there := job_section(catalogue, address)) is not None:
            go_to(there)
            st.rerun()


def _no_such_graph(card: RunCard, address: CircuitAddress) -> Html:
    text = f"{card.name} keeps its circuits in {(card.path / 'circuits').as_posix()}."
    back = html('<p><a href="{h}">All circuits</a></p>', h=_listed(address))
    return alone(message(f"There is no circuit {address.graph}", text, after=back))


def _graph(catalogue: Catalogue, card: RunCard, address: CircuitAddress, found: OpenGraph) -> None:
    other = open_graph(card, address.beside) if address.beside else None
    scene = _scene(catalogue, card, address, found)
    groups, problem = _read_groups(found.path)
    scene = replace(scene, groups=groups)
    _head(card, scene, alone_shown=other is None)
    controls(address, found)
    if other is not None:
        _tools(card, scene, problem)
        draw_pair(scene, _scene(catalogue, card, address, other))
        return
    if address.beside:
        tell(f"There is no circuit {address.beside} to be shown beside this one.", "no-beside")
    show(_body(scene), "circuit")
    _tools(card, scene, problem)
    live_section(scene)
    show(
        html(
            '<div class="page wide circuit">{flows}{looks}<h2>Nodes that are shown</h2>{table}'
            "</div>",
            flows=flows(scene), looks=looks_card(scene), table=node_table(scene),
        ),
        "circuit-table",
    )  # fmt: skip


def _scene(
    catalogue: Catalogue, card: RunCard, address: CircuitAddress, found: OpenGraph
) -> GraphScene:
    pins, lost = pins_of(address.pins, found)
    picked = found.numbers.get(address.node)
    always = [*pins, *([] if picked is None else [picked])]
    kept = found.shown(int(address.nodes), int(address.edges), always)
    kept = restricted(found, kept, address, always)
    return GraphScene(NodeNames(found, catalogue, card), kept, address, pins, lost)


def _head(card: RunCard, scene: GraphScene, *, alone_shown: bool) -> None:
    asked, form = _asked(card, scene), scene.address.fresh(part="explain")
    show(
        html(
            '<div class="page wide circuit"><p class="sub crumbs"><a href="{h}">All circuits</a> '
            'of {run} · <a href="{e}">explain another prediction</a> · <a href="{b}">another '
            "beside this one</a></p>{head}</div>",
            h=_listed(scene.address), e=form.to(**asked).href,
            b=form.to(beside=scene.found.name, **asked).href,
            run=card.name, head=headline(scene) if alone_shown else EMPTY,
        ),
        "circuit-head",
    )  # fmt: skip


def _listed(address: CircuitAddress) -> str:
    """The link to the list of graphs, with the form for another."""
    return address.fresh(part="explain").href


def _asked(card: RunCard, scene: GraphScene) -> dict[str, str]:
    """The graph's prompt, latent and SAEs, for the form."""
    facts = scene.found.graph.facts
    runs = [scene.names.run(name) for name in scene.found.graph.runs]
    known = choices(scene.names.catalogue, card)
    names = names_of(known, {run.path.resolve() for run in runs if run is not None})
    said = {
        "prompt": facts.get("prompt"),
        "wanted": facts.get("latent"),
        "saes": BETWEEN_SAES.join(names),
    }
    return {name: text for name, text in said.items() if isinstance(text, str)}


def _body(scene: GraphScene) -> Html:
    return html(
        '<div class="page wide circuit"><div class="two graph-and-node"><section class="card">'
        '<h2>Tokens from left to right, computation upwards<span class="hint">hover a node to see '
        "its edges</span></h2>{filter}{picture}</section><div>{node}{pins}</div></div></div>",
        filter=filter_line(scene),
        picture=picture(scene),
        node=node_card(scene), pins=pins_card(scene),
    )  # fmt: skip


def _tools(card: RunCard, scene: GraphScene, problem: str) -> None:
    """Tools to name the pinned nodes as a group, remove a group, and download the graph."""
    graph = scene.found.path
    chosen = [
        label
        for label, (members, _) in members_of(scene.found, scene.groups or {}).items()
        if members and members == scene.pins
    ]
    with st.container(key="circuit-tools", horizontal=True, vertical_alignment="bottom"):
        if scene.pins and not scene.address.beside:
            _naming(scene)
        if chosen:
            st.button(
                f"Forget {_plain(chosen[0])}", key="circuit-forget", on_click=_forget,
                args=(graph, chosen[0]),
            )  # fmt: skip
        beside_field(card, scene.address)
        st.space("stretch")
        downloads(card, scene)
    tell(st.session_state.pop(PROBLEM, problem), "group-problem")


def _naming(scene: GraphScene) -> None:
    # A form, so that a click on its button is not lost while the field reports its text.
    with (
        st.form("circuit-naming", border=False, width=430),
        st.container(horizontal=True, vertical_alignment="bottom"),
    ):
        st.text_input(
            "Name the pinned nodes together", key=LABEL, width=280,
            placeholder="label of the supernode", max_chars=80,
        )  # fmt: skip
        names = [scene.found.ids[pin] for pin in scene.pins]
        st.form_submit_button(
            "Save supernode", key="circuit-save", on_click=_save,
            args=(scene.found.path, names),
        )  # fmt: skip


def _plain(label: str) -> str:
    """A label that Markdown, which buttons use, shows unchanged."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]()<>#+-.!|~$:" else c for c in label)


def _save(graph: Path, names: list[str]) -> None:
    label = st.session_state[LABEL]
    if _tried(lambda: save_group(graph, label, names)):
        st.session_state[LABEL] = ""


def _forget(graph: Path, label: str) -> None:
    _tried(lambda: remove_group(graph, label))


def _tried(change: Callable[[], object]) -> bool:
    try:
        change()
    except UsageError as error:
        st.session_state[PROBLEM] = str(error)
        return False
    return True


def _read_groups(graph: Path) -> tuple[dict[str, list[str]], str]:
    try:
        return read_groups(graph), ""
    except UsageError as error:
        return {}, str(error)


PAGE = Page(
    "Circuit",
    CircuitAddress,
    circuit_view,
    needs_decoder=True,
    asks="Which latents lie behind one prediction, and how do they act on each other?",
    elsewhere=circuit_elsewhere,
)
