"""A graph in circuit-tracer's JSON, which Neuronpedia's graph viewer reads too.

That format has latents, errors, embeddings and logits. If all SAEs are transcoders of MLPs, `layer`
and `feature` are those of circuit-tracer. Otherwise `layer` numbers the places where the graph has
nodes, in the order of computation, so SAEs of one block have rows of their own and no row is empty;
the description says which is which, and `clerp` names SAE and latent. Position embeddings are added
to their token's node. MLP outputs without a transcoder become error nodes. Biases and the rest have
no node in that format and are left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from saelab.analysis.circuits.graph_data import AttributionGraph
from saelab.analysis.circuits.influence import cumulative_influence
from saelab.analysis.circuits.nodes import Node


def circuit_tracer_json(
    graph: AttributionGraph,
    *,
    slug: str,
    scan: str,
    pinned: Sequence[Node] = (),
    supernodes: Mapping[str, Sequence[Node]] | None = None,
) -> dict[str, Any]:
    """The graph as the JSON object that circuit-tracer writes.

    Args:
        graph: pruned or not.
        slug: the graph's name in the viewer.
        scan: the viewer's name of the model.
        pinned: nodes that the viewer shows separately.
        supernodes: pinned nodes that the viewer shows as one, by label.
    """
    # The viewer hides what exceeds the threshold, even by rounding.
    shares = cumulative_influence(graph).clip(max=1.0).tolist()
    nodes: dict[str, dict[str, Any]] = {}
    rows = _rows(graph)
    ids: list[str | None] = []
    for node, share in zip(graph.nodes, shares, strict=True):
        made = _node(graph, node, share, _layer(graph, node, rows))
        ids.append(made["node_id"] if made else None)
        if made and made["node_id"] not in nodes:
            nodes[made["node_id"]] = made
    names = dict(zip(graph.nodes, ids, strict=True))

    def id_list(wanted: Sequence[Node]) -> list[str]:
        return list(dict.fromkeys(name for node in wanted if (name := names.get(node))))

    links: dict[tuple[str, str], float] = {}
    for source, target, weight in zip(
        graph.source.tolist(), graph.target.tolist(), graph.weight.tolist(), strict=True
    ):
        start, end = ids[source], ids[target]
        if start is not None and end is not None:
            links[start, end] = links.get((start, end), 0.0) + weight
    return {
        "metadata": _metadata(graph, slug, scan, (sum(made is None for made in ids), rows)),
        "qParams": {
            "pinnedIds": id_list(pinned),
            "supernodes": [
                [label, *found]
                for label, members in (supernodes or {}).items()
                if (found := id_list(members))
            ],
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": list(nodes.values()),
        "links": [
            {"source": source, "target": target, "weight": weight}
            for (source, target), weight in links.items()
        ],
    }


def _metadata(
    graph: AttributionGraph, slug: str, scan: str, found: tuple[int, dict[int, str]]
) -> dict[str, Any]:
    left_out, rows = found
    of = "those of MLPs" if _only_mlps(graph) else f"{', '.join(rows.values())}, from 0 on"
    return {
        "slug": slug,
        "scan": scan,
        "transcoder_list": [],
        "prompt_tokens": list(graph.tokens),
        "prompt": graph.facts.get("prompt", " ".join(graph.tokens)),
        # The ends of the viewer's slider. Shares are counted over this file's nodes, so anything
        # less would hide nodes that pruning kept.
        "node_threshold": 1.0,
        "schema_version": 1,
        "info": {
            "description": f"{graph.facts.get('target', '')}; "
            f"layers are {of}; "
            f"{left_out} nodes (biases, the rest) have no form here.",
            "generator": {"name": "saelab"},
        },
    }


def _only_mlps(graph: AttributionGraph) -> bool:
    saes = graph.facts.get("saes", {}).values()
    return bool(saes) and all(sae["kind"] == "mlp" for sae in saes)


def _rows(graph: AttributionGraph) -> dict[int, str]:
    """The ranks of the places that have nodes, in order, with the name of one there."""
    tokens = ("embedding", "position", "target")
    placed = [n for n in graph.nodes if n.position is not None and n.kind not in tokens]
    return dict(sorted({graph.rank(node): node.name for node in placed}.items()))


def _layer(graph: AttributionGraph, node: Node, rows: dict[int, str]) -> int:
    """The viewer's row of a node that has one; the target's is the last."""
    if _only_mlps(graph):
        return node.layer + (node.kind == "target")
    if node.kind == "target":
        return len(rows)
    if node.position is None or node.kind in ("embedding", "position"):
        return -1
    return list(rows).index(graph.rank(node))


def _node(graph: AttributionGraph, node: Node, share: float, layer: int) -> dict[str, Any] | None:
    """The node in that format, or None if the format has no such node."""
    if node.kind == "target":
        place = node.position or 0
        token = graph.facts.get("token", 0)
        probability = graph.facts.get("probability", 0.0)
        return _made(
            f"{layer}_{token}_{place}", token, layer, place, "logit", f"L_{token}-{place}"
        ) | {
            # Viewers parse the probability from this text and fail without it.
            "clerp": f"{graph.facts.get('target', node.label())} (p={probability:.3f})",
            "is_target_logit": True,
            "token_prob": probability,
        }
    if node.position is None:
        return None
    place = node.position
    if node.kind in ("embedding", "position"):
        token = graph.facts.get("token_ids", [0] * len(graph.tokens))[place]
        made = _made(f"E_{token}_{place}", place, "E", place, "embedding", f"E_{token}-{place}")
        return made | {"clerp": graph.tokens[place], "influence": share}
    if node.kind == "latent":
        latent = node.latent or 0
        kind, pair = "cross layer transcoder", _paired(layer, latent)
        made = _made(f"{layer}_{latent}_{place}", pair, layer, place, kind, f"{layer}_{latent}-0")
        label = f"{node.name} {node.latent}"
        return made | {"clerp": label, "influence": share, "activation": node.value}
    kind = "mlp reconstruction error"
    made = _made(f"{layer}_-1_{place}", -1, layer, place, kind, f"{layer}_-1-{place}")
    return made | {"clerp": node.label(), "influence": share}


def _made(
    node_id: str, feature: int, layer: int | str, place: int, kind: str, js_id: str
) -> dict[str, Any]:
    return {
        "node_id": node_id,
        "feature": feature,
        "layer": str(layer),
        "ctx_idx": place,
        "feature_type": kind,
        "token_prob": 0.0,
        "is_target_logit": False,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": js_id,
        "clerp": "",
        "influence": None,
        "activation": None,
    }


def _paired(x: int, y: int) -> int:
    """Cantor's pairing: one number for layer and latent, as in that format."""
    return (x + y) * (x + y + 1) // 2 + y
