"""Graphs written by `saelab circuit`, read for the Circuit page without torch or a model."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st
from jaxtyping import Bool, Float64
from numpy import ndarray

from feature_browser.data.catalogue import Catalogue, RunCard
from feature_browser.data.reading import stamp
from saelab.analysis.circuits.graph_data import AttributionGraph
from saelab.analysis.circuits.graph_file import (
    GraphSummary,
    load_graph_hdf5,
    read_graph_summary,
)
from saelab.analysis.circuits.influence import (
    Influence,
    PruneOptions,
    kept_parts,
    part_of,
)
from saelab.analysis.circuits.nodes import Node
from saelab.config import UsageError

BETWEEN_PINS = "|"
MOST_PINS, MOST_NODES = 200, 600
NEAREST = 6
"""Edges drawn into and out of a node that is shown regardless of the filters."""


@dataclass(frozen=True)
class Kept:
    """The part of a graph that the filters keep.

    Attributes:
        nodes, edges: the drawn ones: those that the filters keep, and those pinned or picked.
    """

    nodes: Bool[ndarray, " node"]
    edges: Bool[ndarray, " edge"]

    @property
    def hidden_nodes(self) -> int:
        """Number of nodes that are not drawn."""
        return int((~self.nodes).sum())

    @property
    def hidden_edges(self) -> int:
        """Number of edges that are not drawn."""
        return int((~self.edges).sum())


@dataclass(frozen=True)
class OpenGraph:
    """A whole graph, and figures computed from it once.

    Attributes:
        name: the file's name without its suffix; the value of `?graph=`.
        ids: each node's name in the address: its label, which new computations keep.
        numbers: the node of each id.
        influence: the share of paths to the target that lead through each node.
        given: each node's contribution to the target over all paths, in the target's units.
        flow: the part of the target's value that passes along each edge, in the same units.
        strength: the share of paths to the target that lead along each edge.
    """

    path: Path
    graph: AttributionGraph
    ids: tuple[str, ...]
    numbers: dict[str, int]
    influence: Float64[ndarray, " node"]
    given: Float64[ndarray, " node"]
    flow: Float64[ndarray, " edge"]
    strength: Float64[ndarray, " edge"]
    parts: dict[tuple[int, int], Kept] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """The value of `?graph=`."""
        return self.path.stem

    @property
    def saes(self) -> dict[str, dict[str, Any]]:
        """What each SAE reads (kind) and its block (layer), by name."""
        return self.graph.facts["saes"]

    def reads(self, node: Node) -> str:
        """What the SAE of a latent or an error reads: residual, heads, attention, mlp; or empty."""
        return str(self.saes[node.name]["kind"]) if node.name in self.saes else ""

    def token(self, node: Node) -> str:
        """The token at a node's position; empty for nodes without a position."""
        return "" if node.position is None else self.graph.tokens[node.position]

    @property
    def target(self) -> int:
        """The number of the node that the graph explains."""
        return len(self.ids) - 1

    def pruned(self, nodes: int, edges: int) -> Kept:
        """The nodes and edges that the two filters keep, in per cent of the influence; cached."""
        key = (nodes, edges)
        if key not in self.parts:
            if len(self.parts) >= 40:
                self.parts.pop(next(iter(self.parts)), None)
            options = PruneOptions(node_threshold=nodes / 100, edge_threshold=edges / 100)
            known = Influence(self.influence, self.strength)
            self.parts[key] = self._few_enough(*kept_parts(self.graph, options, known))
        return self.parts[key]

    def _few_enough(self, nodes: Bool[ndarray, " node"], edges: Bool[ndarray, " edge"]) -> Kept:
        """At most MOST_NODES of the nodes: the most influential ones."""
        if int(nodes.sum()) > MOST_NODES:
            order = np.argsort(-(self.influence * nodes), kind="stable")
            nodes = np.zeros_like(nodes)
            nodes[order[:MOST_NODES]] = True
            edges = edges & nodes[self.graph.source] & nodes[self.graph.target]
        return Kept(nodes, edges)

    def shown(self, nodes: int, edges: int, always: Iterable[int]) -> Kept:
        """The same, plus some nodes that are always shown, with their strongest edges."""
        kept = self.pruned(nodes, edges)
        forced = sorted(set(always))
        if not forced:
            return kept
        some = kept.nodes.copy()
        some[forced] = True
        drawn = kept.edges.copy()
        for number in forced:
            for edge in (*self.into(number), *self.out_of(number)):
                drawn[edge] |= some[self.graph.source[edge]] and some[self.graph.target[edge]]
        return Kept(some, drawn)

    def into(self, node: int, n: int = NEAREST) -> list[int]:
        """The edges with the largest contributions to a node, the strongest first."""
        return self._strongest(self.graph.target == node, self.graph.weight, n)

    def out_of(self, node: int, n: int = NEAREST) -> list[int]:
        """The edges that carry most of the target's value away from a node, the strongest first."""
        return self._strongest(self.graph.source == node, self.flow, n)

    def frozen_value(self, factors: Mapping[int, float]) -> float:
        """The target's value in the graph if some nodes are multiplied by factors.

        Attention, norms and the set of active latents stay as on the prompt.
        """
        n = len(self.ids)
        factor = np.ones(n)
        factor[list(factors)] = list(factors.values())
        order = np.argsort(self.graph.target, kind="stable")
        source, weight = self.graph.source[order], self.graph.weight[order]
        starts = np.concatenate([[0], np.bincount(self.graph.target, minlength=n).cumsum()])
        whole, rate = self.graph.row_sums(), factor.copy()
        value = float(whole[-1])
        for node in range(n):
            edges = slice(starts[node], starts[node + 1])
            if whole[node] == 0:
                continue
            value = float(weight[edges] @ rate[source[edges]])
            rate[node] = factor[node] * value / whole[node]
        return value

    def together(self, nodes: Iterable[int]) -> float:
        """What the target loses in the graph without these nodes; shared paths count once."""
        return self.graph.nodes[-1].value - self.frozen_value(dict.fromkeys(nodes, 0.0))

    def part(self, kept: Kept) -> AttributionGraph:
        """The kept part as a graph of its own."""
        return part_of(self.graph, kept.nodes, kept.edges)

    @staticmethod
    def _strongest(chosen: Bool[ndarray, " edge"], size: ndarray, n: int) -> list[int]:
        edges = np.flatnonzero(chosen)
        return edges[np.argsort(-np.abs(size[edges]), kind="stable")][:n].tolist()


def circuits_of(card: RunCard) -> list[Path]:
    """The graph files of a run, by name."""
    return sorted((card.path / "circuits").glob("*.h5"))


def open_graph(card: RunCard, name: str) -> OpenGraph | None:
    """The run's graph of that name; None if there is none.

    Raises:
        UsageError: the file is damaged.
    """
    # Only files in the directory's listing are opened, so that no name leads out of it.
    found = next((path for path in circuits_of(card) if path.stem == name), None)
    return None if found is None else _open(found, stamp(found))


def summary(path: Path) -> GraphSummary:
    """The summary of a graph's file.

    Raises:
        UsageError: the file is damaged.
    """
    return _summary(path, stamp(path))


def graphs_beside(catalogue: Catalogue, card: RunCard) -> list[tuple[RunCard, Path]]:
    """Graphs of other runs that have latents of this run."""
    found = []
    for other in catalogue.runs.values():
        for path in circuits_of(other) if other.name != card.name else ():
            try:
                members = _runs_of(summary(path).facts.get("saes"))
            except UsageError:
                continue  # its own run's page says so
            if card.own_name in members and sae_run(catalogue, other, card.own_name) == card:
                found.append((other, path))
    return found


def _runs_of(saes: object) -> set[str]:
    """The runs of a graph's SAEs; each layer of a cross-layer transcoder names its own."""
    known = saes.items() if isinstance(saes, dict) else ()
    return {str(sae.get("run", name)) for name, sae in known if isinstance(sae, dict)}


def sae_run(catalogue: Catalogue, owner: RunCard, sae: str) -> RunCard | None:
    """The run whose SAE a graph of `owner` calls `sae`: a run whose directory has this name.

    Of several, the owner itself is preferred, then a run beside it, then the first.
    """
    named = [card for card in catalogue.runs.values() if card.own_name == sae]
    return min(
        named,
        key=lambda card: (card.path != owner.path, card.path.parent != owner.path.parent),
        default=None,
    )


def pins_of(text: str, found: OpenGraph) -> tuple[list[int], int]:
    """The nodes named by `?pins=`, in its order, and the number of names without a node."""
    names = list(dict.fromkeys(name for name in text.split(BETWEEN_PINS) if name))[:MOST_PINS]
    known = [found.numbers[name] for name in names if name in found.numbers]
    return known, len(names) - len(known)


def pins_text(found: OpenGraph, pins: Iterable[int]) -> str:
    """These nodes as text for `?pins=`."""
    return BETWEEN_PINS.join(found.ids[pin] for pin in pins)


def node_id(node: Node) -> str:
    """A node's name in the address."""
    kind = "" if node.kind in ("latent", "error", "bias", "target") else f"{node.kind}: "
    text = "target" if node.kind == "target" else f"{kind}{node.label()}"
    return text.replace(BETWEEN_PINS, "/")


@st.cache_resource(max_entries=256, show_spinner=False)
def _summary(path: Path, stamp: int) -> GraphSummary:
    del stamp  # part of the cache's key only
    return read_graph_summary(path)


@st.cache_resource(max_entries=4, show_spinner="Reading the graph …")
def _open(path: Path, stamp: int) -> OpenGraph:
    del stamp  # part of the cache's key only
    return prepared(path, load_graph_hdf5(path))


def prepared(path: Path, graph: AttributionGraph) -> OpenGraph:
    """A graph with the figures that the page needs.

    Raises:
        UsageError: the file does not give its SAEs' places.
    """
    _check_saes(path, graph)
    ids = tuple(node_id(node) for node in graph.nodes)
    influence, given = Influence.of(graph), graph.attributions()
    # For edges into the target, its own value is the whole, which may be zero; a latent's is not.
    value = graph.values
    rate = np.where(np.arange(len(value)) == len(value) - 1, 1.0, given / _nonzero(value))
    flow = graph.weight * rate[graph.target]
    numbers = {name: number for number, name in reversed(list(enumerate(ids)))}
    return OpenGraph(path, graph, ids, numbers, influence.nodes, given, flow, influence.edges)


def _nonzero(values: Float64[ndarray, " n"]) -> Float64[ndarray, " n"]:
    return np.where(values == 0, 1.0, values)


def _check_saes(path: Path, graph: AttributionGraph) -> None:
    saes = graph.facts.get("saes")
    named = {node.name for node in graph.nodes if node.kind == "latent"}
    if not (isinstance(saes, dict) and named <= set(saes)):
        raise UsageError(f"{path} does not say where its SAEs stand; run `saelab circuit` again.")
