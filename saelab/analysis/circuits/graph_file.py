"""A circuit as a compact HDF5 file, for graphs of millions of edges: 8 bytes an edge.

All datasets are contiguous. There are N nodes in order of computation, the target last, and E
edges; edges into one node are consecutive.

    node/kind               uint8 [N]     index into the facts' `kinds`
    node/name               int32 [N]     index into the facts' `names`
    node/layer              int32 [N]
    node/position, latent   int32 [N]     -1 for none
    node/value              float64 [N]
    edge/start              int64 [N+1]   the edges into node n are start[n] to start[n+1]
    edge/source             int32 [E]
    edge/weight             float32 [E]   in the target node's units

The dataset `facts` is JSON text: format, kinds, names, tokens, counts, and the graph's facts as in
graph_json.py.
"""

from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any, get_args

import numpy as np

from saelab.analysis.circuits.graph_data import AttributionGraph
from saelab.analysis.circuits.graph_json import check_graph
from saelab.analysis.circuits.nodes import Node, NodeKind
from saelab.config import UsageError
from saelab.formats.hdf5_file import Hdf5Arrays, read_hdf5, write_hdf5

FORMAT = "saelab-circuit-hdf5/1"
KINDS: tuple[NodeKind, ...] = get_args(NodeKind)
COLUMNS = {
    **dict.fromkeys(("node/kind", "node/name", "node/layer"), "iu"),
    **dict.fromkeys(("node/position", "node/latent", "edge/start", "edge/source"), "iu"),
    **dict.fromkeys(("node/value", "edge/weight"), "f"),
}
"""The arrays, and the kinds of numbers that they hold."""


def save_graph_hdf5(graph: AttributionGraph, path: Path) -> None:
    """Write the graph, whole or not at all; weights are rounded to float32."""
    names = sorted({node.name for node in graph.nodes})
    index = {name: number for number, name in enumerate(names)}
    order = np.argsort(graph.target, kind="stable")
    counts = np.bincount(graph.target, minlength=len(graph.nodes))
    missing = -1
    arrays = {
        "node/kind": np.array([KINDS.index(n.kind) for n in graph.nodes], np.uint8),
        "node/name": np.array([index[n.name] for n in graph.nodes], np.int32),
        "node/layer": np.array([n.layer for n in graph.nodes], np.int32),
        "node/position": _optional([n.position for n in graph.nodes], missing),
        "node/latent": _optional([n.latent for n in graph.nodes], missing),
        "node/value": graph.values,
        "edge/start": np.concatenate([[0], counts.cumsum()]).astype(np.int64),
        "edge/source": graph.source[order].astype(np.int32),
        "edge/weight": graph.weight[order].astype(np.float32),
    }
    facts = {
        "format": FORMAT,
        "kinds": KINDS,
        "names": names,
        "tokens": graph.tokens,
        "counts": graph.counts,
        "facts": graph.facts,
    }
    # A dataset, since attributes hold at most 64 KiB and a prompt may be long.
    write_hdf5(path, arrays, facts, facts_in="dataset")


def load_graph_hdf5(path: Path) -> AttributionGraph:
    """The graph written by `save_graph_hdf5`.

    Raises:
        UsageError: the file is missing, damaged, or of another format.
    """
    stored = _read(path)
    try:
        graph = _graph(stored)
    except UsageError:
        raise
    except (LookupError, ValueError, TypeError) as error:
        raise UsageError(f"{path} is not a whole circuit file: {error}.") from error
    check_graph(graph, path)
    return graph


@dataclass(frozen=True)
class GraphSummary:
    """A summary of a graph's file; nodes and edges are not read."""

    n_nodes: int
    n_edges: int
    tokens: tuple[str, ...]
    facts: dict[str, Any]


def read_graph_summary(path: Path) -> GraphSummary:
    """The summary of a graph written by `save_graph_hdf5`.

    Raises:
        UsageError: the file is missing, damaged, or of another format.
    """
    stored = _read(path)
    n_nodes, n_edges = (stored.kind(name)[1][0] for name in ("node/kind", "edge/source"))
    return GraphSummary(n_nodes, n_edges, tuple(stored.facts["tokens"]), stored.facts["facts"])


def own_path(path: Path, graph: AttributionGraph) -> Path:
    """`path`, or with -2, -3, ... where that holds a graph of another prompt, target or other SAEs.

    A damaged graph is replaced.
    """
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
    return next(p for p in chain([path], numbered) if _free_for(graph, p.with_suffix(".h5")))


def _free_for(graph: AttributionGraph, path: Path) -> bool:
    try:
        there = read_graph_summary(path).facts if path.is_file() else graph.facts
    except UsageError:
        return True
    first, second = (
        (facts.get("prompt"), facts.get("target"), sorted(facts.get("saes", ())))
        for facts in (there, graph.facts)
    )
    return first == second


def _read(path: Path) -> Hdf5Arrays:
    """The arrays and facts, checked against each other; no array is read."""
    stored = read_hdf5(path, "circuit file")
    if (found := stored.facts.get("format")) != FORMAT:
        raise UsageError(
            f"{path} has the format {str(found)[:60]!r}; this saelab reads {FORMAT!r}."
        )
    if problem := _facts_problem(stored.facts) or _columns_problem(stored):
        raise UsageError(f"{path} is not a whole circuit file: {problem}.")
    return stored


def _facts_problem(facts: dict[str, Any]) -> str | None:
    for name in ("kinds", "names", "tokens"):
        texts = facts.get(name)
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            return f"its {name} are no list of texts"
    if not set(facts["kinds"]) <= set(KINDS):
        return "it has nodes of an unknown kind"
    if not all(isinstance(facts.get(name), dict) for name in ("counts", "facts")):
        return "it does not say what it counts"
    return None


def _columns_problem(stored: Hdf5Arrays) -> str | None:
    for name, kinds in COLUMNS.items():
        if name not in stored:
            return f"it has no {name}"
        kind, shape = stored.kind(name)
        if len(shape) != 1 or kind not in kinds:
            return f"{name} is no column of such numbers"
    lengths = {name: stored.kind(name)[1][0] for name in COLUMNS}
    n_nodes = {n for name, n in lengths.items() if name.startswith("node/")}
    n_nodes.add(lengths["edge/start"] - 1)
    if len(n_nodes) > 1 or lengths["edge/source"] != lengths["edge/weight"]:
        return "its columns differ in length"
    return None


def _graph(stored: Hdf5Arrays) -> AttributionGraph:
    facts, start = stored.facts, stored["edge/start"].astype(np.int64)
    names = ("kind", "name", "layer", "position", "latent", "value")
    columns = (stored[f"node/{name}"].tolist() for name in names)
    nodes = tuple(
        Node(
            facts["kinds"][kind],
            facts["names"][name],
            layer,
            None if position < 0 else position,
            None if latent < 0 else latent,
            value,
        )
        for kind, name, layer, position, latent, value in zip(*columns, strict=True)
    )
    counts = np.diff(start)
    if start[0] != 0 or start[-1] != len(stored["edge/source"]) or (counts < 0).any():
        raise ValueError("its edges do not lie one after another")
    return AttributionGraph(
        nodes,
        stored["edge/source"].astype(np.int64),
        np.repeat(np.arange(len(nodes), dtype=np.int64), counts),
        stored["edge/weight"].astype(np.float64),
        tuple(facts["tokens"]),
        facts["counts"],
        facts["facts"],
    )


def _optional(values: list[int | None], missing: int) -> np.ndarray:
    return np.array([missing if value is None else value for value in values], np.int32)
