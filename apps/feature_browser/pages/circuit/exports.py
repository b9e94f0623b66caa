"""The shown part of a graph as a file: saelab's JSON, or that of circuit-tracer and Neuronpedia."""

import json
from dataclasses import replace
from pathlib import Path

import streamlit as st

from feature_browser.data.catalogue import RunCard
from feature_browser.pages.circuit.pins import members_of
from feature_browser.pages.circuit.scene import GraphScene
from saelab.analysis.circuits.graph_json import graph_json


def downloads(card: RunCard, scene: GraphScene) -> None:
    """The buttons that save the shown part as a file."""
    name = scene.found.name
    st.download_button(
        "JSON", data=lambda: exported_json(scene), file_name=f"{name}.json",
        mime="application/json", key="circuit-json", on_click="ignore",
        help="The graph as it is shown, with filters, pins and supernodes",
    )  # fmt: skip
    st.download_button(
        "circuit-tracer JSON", data=lambda: exported_circuit_tracer(scene, card),
        file_name=f"{name}.circuit-tracer.json", mime="application/json", key="circuit-tracer",
        on_click="ignore", help="The same for circuit-tracer's and Neuronpedia's viewers",
    )  # fmt: skip


def exported_json(scene: GraphScene) -> str:
    """The shown part, in the format of `saelab circuit`, with the reader's view in the facts."""
    part = scene.found.part(scene.kept)
    address = scene.address
    view = {
        "node_threshold": int(address.nodes) / 100,
        "edge_threshold": int(address.edges) / 100,
        "pins": [scene.found.ids[pin] for pin in scene.pins],
        "supernodes": scene.groups or {},
    }
    return json.dumps(graph_json(replace(part, facts=part.facts | {"view": view})))


def exported_circuit_tracer(scene: GraphScene, card: RunCard) -> str:
    """The shown part, in circuit-tracer's format, with pins and supernodes."""
    # Imports torch, which the page itself does without.
    from saelab.analysis.circuits.circuit_tracer import circuit_tracer_json

    nodes = scene.found.graph.nodes
    groups = members_of(scene.found, scene.groups or {})
    values = circuit_tracer_json(
        scene.found.part(scene.kept),
        slug=scene.found.name,
        scan=Path(str(scene.found.graph.facts.get("model", card.model))).name,
        pinned=[nodes[pin] for pin in scene.pins],
        supernodes={label: [nodes[n] for n in members] for label, (members, _) in groups.items()},
    )
    return json.dumps(values)
