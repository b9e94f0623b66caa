"""A circuit as a compact HDF5 file, for graphs of millions of edges: 8 bytes an edge.

All datasets are contiguous. N nodes in order of computation, the target last; E edges, those into
one node beside each other.

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

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import h5py
import numpy as np

from saelab.analysis.circuits.graph_data import AttributionGraph
from saelab.analysis.circuits.graph_json import check_graph
from saelab.analysis.circuits.nodes import Node, NodeKind
from saelab.config import UsageError
from saelab.files import atomic_write

FORMAT = "saelab-circuit-hdf5/1"
KINDS: tuple[NodeKind, ...] = get_args(NodeKind)


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
    # HDF5 builds the file in memory: on a full disk it would crash the process, not raise.
    image = io.BytesIO()
    with h5py.File(image, "w", libver=("v110", "v114")) as h5:
        # A dataset, since attributes end at 64 KiB and a prompt may be long.
        h5["facts"] = json.dumps(facts, allow_nan=False)
        for name, values in arrays.items():
            h5.create_dataset(name, data=values)
    atomic_write(path, image.getbuffer())


def load_graph_hdf5(path: Path) -> AttributionGraph:
    """The graph written by `save_graph_hdf5`.

    Raises:
        UsageError: the file is missing, damaged, or of another format.
    """
    try:
        with h5py.File(path, "r", locking=False) as h5:
            facts: dict[str, Any] = json.loads(_read(h5, "facts")[()])
            arrays = {
                name: _read(h5, f"{group}/{name}")[()]
                for group, names in (
                    ("node", ("kind", "name", "layer", "position", "latent", "value")),
                    ("edge", ("start", "source", "weight")),
                )
                for name in names
            }
        if facts["format"] != FORMAT:
            raise UsageError(
                f"{path} has the format {facts['format']!r}; this saelab reads {FORMAT!r}."
            )
        graph = _graph(arrays, facts)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist.") from None
    except UsageError:
        raise
    except (OSError, KeyError, ValueError, IndexError, TypeError) as error:
        raise UsageError(f"{path} is not a whole circuit file: {error}.") from error
    check_graph(graph, path)
    return graph


@dataclass(frozen=True)
class GraphSummary:
    """What a graph's file says of it; its nodes and edges are not read."""

    n_nodes: int
    n_edges: int
    tokens: tuple[str, ...]
    facts: dict[str, Any]


def read_graph_summary(path: Path) -> GraphSummary:
    """The summary of a graph written by `save_graph_hdf5`.

    Raises:
        UsageError: the file is missing, damaged, or of another format.
    """
    try:
        with h5py.File(path, "r", locking=False) as h5:
            facts: dict[str, Any] = json.loads(_read(h5, "facts")[()])
            sizes = len(_read(h5, "node/kind")), len(_read(h5, "edge/source"))
        if facts["format"] != FORMAT:
            raise UsageError(
                f"{path} has the format {facts['format']!r}; this saelab reads {FORMAT!r}."
            )
        return GraphSummary(*sizes, tuple(map(str, facts["tokens"])), dict(facts["facts"]))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist.") from None
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UsageError(f"{path} is not a whole circuit file: {error}.") from error


def _graph(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> AttributionGraph:
    columns = (arrays[n].tolist() for n in ("kind", "name", "layer", "position", "latent", "value"))
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
    counts = np.diff(arrays["start"])
    if len(counts) != len(nodes) or len(arrays["source"]) != len(arrays["weight"]):
        raise ValueError("its columns differ in length")
    target = np.repeat(np.arange(len(nodes), dtype=np.int64), counts)
    return AttributionGraph(
        nodes,
        arrays["source"].astype(np.int64),
        target,
        arrays["weight"].astype(np.float64),
        tuple(facts["tokens"]),
        facts["counts"],
        facts["facts"],
    )


def _read(h5: h5py.File, name: str) -> h5py.Dataset:
    found = h5[name]
    if not isinstance(found, h5py.Dataset):
        raise KeyError(f"{name} is no dataset")
    return found


def _optional(values: list[int | None], missing: int) -> np.ndarray:
    return np.array([missing if value is None else value for value in values], np.int32)
