"""Which part of a graph is shown: by influence, by block, by token; and whether nodes are named."""

import numpy as np
import streamlit as st

from feature_browser.pages.circuit.address import CircuitAddress, range_of
from feature_browser.pages.circuit.graphs import Kept, OpenGraph
from feature_browser.shell.canvas import change

SLIDERS = {"nodes": "Nodes: % of the influence", "edges": "Edges: % of the influence"}
WIDTH = 230
BEFORE = -1
"""The layer of what comes before the first block."""


def restricted(found: OpenGraph, kept: Kept, address: CircuitAddress, always: list[int]) -> Kept:
    """The kept part within the address's blocks and tokens; the target and `always` stay.

    What belongs to no token, such as biases, is in any range of tokens.
    """
    layers, positions = range_of(address.layers), range_of(address.positions)
    if layers is None and positions is None:
        return kept
    stays = {found.target, *always}
    inside = np.array(
        [
            number in stays
            or (
                (layers is None or layers[0] <= node.layer <= layers[1])
                and (
                    positions is None
                    or node.position is None
                    or positions[0] <= node.position <= positions[1]
                )
            )
            for number, node in enumerate(found.graph.nodes)
        ]
    )
    nodes = kept.nodes & inside
    return Kept(nodes, kept.edges & nodes[found.graph.source] & nodes[found.graph.target])


def controls(address: CircuitAddress, found: OpenGraph) -> None:
    """The sliders, which write the address."""
    with st.container(key="controls", horizontal=True, vertical_alignment="center", gap="large"):
        for name, title in SLIDERS.items():
            key, value = f"circuit-{name}", int(getattr(address, name))
            if st.session_state.get(key) != value:
                st.session_state[key] = value
            st.slider(title, 0, 100, key=key, on_change=_slid, args=(name,), width=WIDTH)
        top = max((node.layer for node in found.graph.nodes[:-1]), default=BEFORE)
        _range("layers", f"Blocks; {BEFORE} is what comes before them", (BEFORE, top), address)
        _range("positions", "Tokens, by position", (0, len(found.graph.tokens) - 1), address)
        st.session_state["circuit-named"] = address.named == "yes"
        st.toggle("Names", key="circuit-named", on_change=_named)


def _range(name: str, title: str, ends: tuple[int, int], address: CircuitAddress) -> None:
    if ends[0] == ends[1]:
        return
    key, wanted = f"circuit-{name}", range_of(getattr(address, name)) or ends
    low, high = (min(max(end, ends[0]), ends[1]) for end in wanted)
    if st.session_state.get(key) != (low, high):
        st.session_state[key] = (low, high)
    st.slider(title, *ends, key=key, on_change=_ranged, args=(name, ends), width=WIDTH)


def _slid(name: str) -> None:
    value = st.session_state[f"circuit-{name}"]
    change(CircuitAddress, lambda now: now.to(**{name: value}))


def _ranged(name: str, ends: tuple[int, int]) -> None:
    low, high = st.session_state[f"circuit-{name}"]
    text = "" if (low, high) == ends else f"{low}-{high}"
    change(CircuitAddress, lambda now: now.to(**{name: text}))


def _named() -> None:
    named = "yes" if st.session_state["circuit-named"] else "no"
    change(CircuitAddress, lambda now: now.to(named=named))
