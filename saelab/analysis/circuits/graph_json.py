"""A circuit as one JSON file: what `saelab circuit` writes.

    format    "saelab-circuit/1"
    facts     target (text), value, position, token_ids; saes: by name the block (layer), what is
              read there (kind: residual, heads, attention or mlp) and the rank in the computation
              (depth; readers take it from layer and kind); of a layer of a cross-layer transcoder
              also the transcoder (run) and the number there of its latent 0 (first);
              attention: the attention weights that carry most of the target's value (layer, head,
              dest and source position; gives, in the target's units; pattern, score before the
              softmax and soft cap, its advantage over the mean source; the largest pairs of a query
              and a key node with their part of the score; by_kind, four parts that sum to it);
              interventions: single latents taken away (name, latent, position), and the target's
              change as the graph predicts it and in the live model (predicted, live);
              whatever else the writer knew (prompt, model, runs, scores, faithfulness)
    tokens    the prompt, one text a position
    counts    latents active, in the graph, left out; edges; what pruning dropped
    nodes     in order of computation, the target last:
              kind       latent, error, embedding, position, mlp, heads, bias, rest, target
              name       of the SAE for latents and errors
              layer      -1 embeddings, n_layers the target
              position   null for biases and the rest, which stand for all positions
              latent     its number, or null
              value      activation (1 where there is none)
              influence  share of paths to the target, by magnitudes; 1 for the target
              attribution  what it gives the target over all paths, signed, in the target's units
    sha256    over all others, see saelab/formats/json_file.py
    edges     [source, target, weight]: node numbers, and the direct effect in the target node's
              units; the edges into a latent sum to its value unless the graph was pruned

Influence and attribution follow from the edges; they are written for other readers.
"""

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from saelab.analysis.circuits.graph_data import AttributionGraph
from saelab.analysis.circuits.influence import node_influence
from saelab.analysis.circuits.nodes import Node, NodeKind
from saelab.config import UsageError, first_problem
from saelab.files import atomic_write
from saelab.formats.json_file import read_sealed_json, sealed
from saelab.sites import PlaceKind

FORMAT = "saelab-circuit/1"
MAX_BYTES, MAX_VALUES = 2**28, 10_000_000
"""Limits for two million edges; larger graphs are written as HDF5, see graph_file.py."""


def graph_json(graph: AttributionGraph) -> dict[str, Any]:
    """The graph as the JSON object described above."""
    influence, given = node_influence(graph).tolist(), graph.attributions().tolist()
    nodes = [
        {
            "kind": node.kind,
            "name": node.name,
            "layer": node.layer,
            "position": node.position,
            "latent": node.latent,
            "value": node.value,
            "influence": influence[number],
            "attribution": given[number],
        }
        for number, node in enumerate(graph.nodes)
    ]
    edges = zip(graph.source.tolist(), graph.target.tolist(), graph.weight.tolist(), strict=True)
    return {
        "format": FORMAT,
        "facts": graph.facts,
        "tokens": list(graph.tokens),
        "counts": graph.counts,
        "nodes": nodes,
        "edges": [list(edge) for edge in edges],
    }


def save_graph(graph: AttributionGraph, path: Path) -> None:
    """Write the graph, whole or not at all."""
    # With indentation, every number of every edge would have its own line.
    text = json.dumps(sealed(graph_json(graph)), allow_nan=False, separators=(",", ":"))
    atomic_write(path, text.encode())


@checked(config=ConfigDict(extra="ignore"))
class _Node:
    kind: NodeKind
    name: str
    layer: int
    position: int | None
    latent: int | None
    value: float


@checked
class _File:
    format: str
    facts: dict[str, Any]
    tokens: tuple[str, ...]
    counts: dict[str, int | float]
    nodes: list[_Node]
    edges: list[tuple[int, int, float]]


def load_graph(path: Path) -> AttributionGraph:
    """The graph written by `save_graph`.

    Raises:
        UsageError: the file is missing, damaged, or of another format.
    """
    try:
        values = read_sealed_json(path, most=MAX_BYTES, max_values=MAX_VALUES)
        file = TypeAdapter(_File).validate_python(values)
    except ValidationError as error:
        raise UsageError(f"{path} is not a circuit file: {first_problem(error)}.") from None
    if file.format != FORMAT:
        raise UsageError(f"{path} has the format {file.format!r}; this saelab reads {FORMAT!r}.")
    nodes = tuple(Node(n.kind, n.name, n.layer, n.position, n.latent, n.value) for n in file.nodes)
    edges = np.array(file.edges, dtype=np.float64).reshape(-1, 3)
    graph = AttributionGraph(
        nodes,
        edges[:, 0].astype(np.int64),
        edges[:, 1].astype(np.int64),
        edges[:, 2],
        file.tokens,
        file.counts,
        file.facts,
    )
    check_graph(graph, path)
    return graph


def check_graph(graph: AttributionGraph, path: Path) -> None:
    """Refuse an invalid graph: the file is untrusted.

    Raises:
        UsageError: an edge does not go from a lower to a higher node, or has an unknown end; the
            last node is no target; a node's position is outside the prompt; or a number is not
            finite.
    """
    if not graph.nodes or graph.nodes[-1].kind != "target":
        raise UsageError(f"{path} is not a circuit file: its last node is no target.")
    ends = np.stack([graph.source, graph.target])
    inside = ends.size == 0 or (ends.min() >= 0 and ends.max() < len(graph.nodes))
    if not inside or bool((graph.source >= graph.target).any()):
        raise UsageError(
            f"{path} is not a circuit file: an edge does not go from a lower to a higher node."
        )
    _check_left_out(graph, path)
    places = [node.position for node in graph.nodes if node.position is not None]
    if any(not 0 <= place < len(graph.tokens) for place in places):
        raise UsageError(
            f"{path} is not a circuit file: a node stands outside its prompt of "
            f"{len(graph.tokens)} tokens."
        )
    if not (np.isfinite(graph.weight).all() and np.isfinite(graph.values).all()):
        raise UsageError(f"{path} is not a circuit file: a weight or a value is not finite.")


def _check_left_out(graph: AttributionGraph, path: Path) -> None:
    saes = graph.facts.get("saes", {})
    whole = isinstance(saes, dict) and all(
        isinstance(sae, dict)
        and isinstance(layer := sae.get("layer"), int)
        and 0 <= layer < 10**6
        and sae.get("kind") in get_args(PlaceKind)
        and isinstance(places := sae.get("left_out", []), list)
        and all(isinstance(place, int) and 0 <= place < len(graph.tokens) for place in places)
        and isinstance(sae.get("run", ""), str)
        and isinstance(first := sae.get("first", 0), int)
        and 0 <= first < 2**31
        for sae in saes.values()
    )
    named = {node.name for node in graph.nodes if node.kind in ("latent", "error")}
    if not whole or (saes and not named <= set(saes)):
        raise UsageError(f"{path} is not a circuit file: it does not say where its SAEs stand.")
