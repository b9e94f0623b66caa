"""The attribution graph of a prompt: exact direct effects between its nodes.

Nodes are active latents, SAE errors, MLP outputs without a transcoder, embeddings, positions and
biases; the target is the last node. An edge is the direct effect of its source: the source's value
times the target's gradient, with every other latent held fixed. So a node's incoming edges sum to
its value. Attention patterns and norm scales are constants.
"""

from typing import Any, Literal

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from saelab.analysis.circuits.backward_walk import stop, walk_back
from saelab.analysis.circuits.frozen import Frozen, in_dtype
from saelab.analysis.circuits.graph_data import AttributionGraph
from saelab.analysis.circuits.nodes import Node
from saelab.analysis.circuits.rows import InputRows
from saelab.analysis.circuits.targets import Target
from saelab.config import Config
from saelab.console import progress


class GraphOptions(Config):
    """How much of a prompt's graph to compute."""

    max_nodes: int = Field(default=4096, gt=0)
    """Most latents in the graph: the most influential ones. The contributions of the others
    are summed as `rest` for each node. Memory is 12 bytes times max_nodes times the number of
    active latents (at most 4,096, the largest inputs of each), plus 4 bytes times max_nodes times
    the leaves."""
    stop_share: float = Field(default=0.95, gt=0, le=1)
    """Stop earlier, once the graph's latents have this share of the influence of all latents. What
    a graph leaves out counts as unexplained, so a share says more than a number: a real model has
    tens of thousands of active latents, a small one hundreds."""
    batch_size: int = Field(default=64, gt=0)
    """Number of latents whose inputs are computed before influence is ranked again; in a large
    graph, a quarter of those that it has."""
    precision: Literal["float32", "float64"] = "float32"
    """Precision of inputs. Activations are always computed in float64; in float32 a node's inputs
    sum to its value within 1e-4 of it."""


def attribution_graph(
    frozen: Frozen,
    target: Target,
    tokens: tuple[str, ...],
    options: GraphOptions | None = None,
    facts: dict[str, Any] | None = None,
) -> AttributionGraph:
    """The graph of a target on the prompt.

    Args:
        frozen: the prompt.
        target: what is explained.
        tokens: the prompt as text, one string per position.
        options: limits of the graph's size.
        facts: added to the graph's facts.
    """
    options = options or GraphOptions()
    walked, reading = in_dtype((frozen, target.reading), getattr(torch, options.precision))
    rows, n = InputRows(walked, reading), min(options.max_nodes, len(frozen.values))
    # If there is room for all, no ranking is needed.
    least = n if options.stop_share == 1 and n == len(frozen.values) else options.batch_size
    with progress("Trace", n, "latents") as bar:
        while len(rows.latents) < n:
            many = max(least, len(rows.latents) // 4)
            following = rows.following(min(many, n - len(rows.latents)), options.stop_share)
            if not len(following):
                break
            rows.expand(following, bar)
    return _assembled(frozen, target, rows, tokens, facts or {})


@torch.no_grad()
def direct_inputs(frozen: Frozen, target: Target) -> list[tuple[Node, float]]:
    """Direct contributions to a target from all sources, all active latents included.

    They sum to its value. It is the last row of the target's graph, without the cost of other rows.
    """
    found = walk_back(frozen, target.reading, stop)
    weights = torch.cat([found.leaves[0], found.gradient[0] * frozen.values]).tolist()
    latents = _latent_nodes(frozen, torch.arange(len(frozen.values)))
    pairs = zip([*_leaf_nodes(frozen), *latents], weights, strict=True)
    return [(node, weight) for node, weight in pairs if weight]


def _assembled(
    frozen: Frozen, target: Target, rows: InputRows, tokens: tuple[str, ...], facts: dict[str, Any]
) -> AttributionGraph:
    kept = rows.latents.sort().values.cpu()
    leaves = [*_leaf_nodes(frozen), Node("rest", "latents left out", -1)]
    source, end, weight = rows.edges(kept)
    used = torch.ones(len(leaves) + len(kept) + 1, dtype=torch.bool)
    used[: len(leaves)] = torch.bincount(source, minlength=len(used))[: len(leaves)] > 0
    number = used.cumsum(0) - 1
    last = Node(
        "target", target.label, len(frozen.weights.layers), target.position, None, target.value
    )
    nodes = [*leaves, *_latent_nodes(frozen, kept), last]
    return AttributionGraph(
        nodes=tuple(node for node, keep in zip(nodes, used.tolist(), strict=True) if keep),
        source=number[source].numpy(),
        target=number[end].numpy(),
        weight=weight.double().numpy(),
        tokens=tokens,
        counts=_counts(frozen, rows, len(weight)),
        facts={"saes": _places(frozen), **_explained(frozen, target), **facts},
    )


def _counts(frozen: Frozen, rows: InputRows, n_edges: int) -> dict[str, int | float]:
    n, n_left = len(rows.latents), len(frozen.values) - len(rows.latents)
    return {
        "active_latents": len(frozen.values),
        "latents": n,
        "latents_left_out": n_left,
        "influence_left_out": rows.influence().left_out,
        "edges": n_edges,
    }


def _explained(frozen: Frozen, target: Target) -> dict[str, Any]:
    return {
        "target": target.label,
        "value": target.value,
        "position": target.position,
        "token_ids": frozen.record.tokens[0].tolist(),
    }


def _places(frozen: Frozen) -> dict[str, dict[str, int | str | list[int]]]:
    """Each SAE's block, kind of site and rank in the computation.

    And the positions where it is not applied, because training left such tokens out. Of a layer of
    a cross-layer transcoder, the transcoder's name and the number of the first latent in it.
    """
    return {
        active.name: {
            "layer": active.place.layer,
            "kind": active.place.kind,
            "depth": active.place.depth,
            "left_out": (~active.applies).nonzero()[:, 0].tolist(),
            **dict(zip(("run", "first"), active.layer_of or (), strict=False)),
        }
        for active in frozen.actives
    }


def _leaf_nodes(frozen: Frozen) -> list[Node]:
    """One node per leaf, in the order of `Frozen.leaves`."""
    layers = {active.name: active.place.layer for active in frozen.actives}
    nodes = []
    for leaf, span in frozen.leaves.items():
        kind, _, rest = leaf.partition(" ")
        if kind in ("embedding", "position"):
            nodes += [Node(kind, leaf, -1, p) for p in range(frozen.n_pos)]
        elif kind == "error":
            nodes += [Node("error", rest, layers[rest], p) for p in range(frozen.n_pos)]
        elif kind == "mlp":
            nodes += [Node("mlp", leaf, int(rest), p) for p in range(frozen.n_pos)]
        else:
            name = rest if kind == "bias" else leaf
            nodes.append(Node("bias", name, _layer_of(rest, layers, len(frozen.weights.layers))))
        assert len(nodes) == span.stop
    return nodes


def _layer_of(name: str, layers: dict[str, int], n_layers: int) -> int:
    """The block of a bias such as `b_V 2`, `b_dec NAME` or `ln_final`."""
    if name in layers:
        return layers[name]
    number = name.rpartition(" ")[2]
    return int(number) if number.isdigit() else n_layers


def _latent_nodes(frozen: Frozen, kept: Int[Tensor, " n"]) -> list[Node]:
    nodes = []
    for index in kept.tolist():
        number = int(frozen.owner[index])
        active = frozen.actives[number]
        entry = index - frozen.spans[number].start
        latent, position = int(active.codes.latent[entry]), int(active.codes.row[entry])
        value = float(active.codes.values[entry])
        nodes.append(Node("latent", active.name, active.place.layer, position, latent, value))
    return nodes
