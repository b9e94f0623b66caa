"""The attribution graph of a prompt: who gives what to whom, directly, and in exact numbers.

Nodes are active latents, what SAEs miss (errors), MLP outputs without a transcoder, embeddings,
positions and biases; the target is the last node. An edge is the direct effect of its source: the
source's value times the target's gradient with every other latent held fixed. So a node's incoming
edges sum to its value. Attention patterns and norm scales are constants throughout.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from saelab.analysis.circuits.frozen import Frozen
from saelab.analysis.circuits.graph_data import AttributionGraph
from saelab.analysis.circuits.nodes import Node
from saelab.analysis.circuits.pull import Reading, latent_reading, pull, stop
from saelab.analysis.circuits.targets import Target
from saelab.config import Config

CHUNK = 128
"""Latents whose inputs are computed together; memory is this times prompt times width."""


class GraphOptions(Config):
    """How much of a prompt's graph is computed."""

    max_nodes: int = Field(default=256, gt=0)
    """Latents in the graph, the most influential ones; the others' contributions are kept as the
    sum `rest` for each node. Memory is 8 bytes times this times the active latents and leaves."""
    batch_size: int = Field(default=64, gt=0)
    """Latents whose inputs are computed between two looks at which matter most."""


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
        tokens: the prompt as text, one a position.
        options: how large it may become.
        facts: joins the graph's.
    """
    options = options or GraphOptions()
    rows = _Rows(frozen, target.reading)
    # Where there is room for all, nothing need be ranked.
    at_once = options.batch_size if options.max_nodes < len(frozen.values) else len(frozen.values)
    while len(rows.latents) < options.max_nodes:
        missing = min(at_once, options.max_nodes - len(rows.latents))
        following = rows.most_influential(missing)
        if not len(following):
            break
        rows.expand(following)
    return _assembled(frozen, target, rows, tokens, facts or {})


@torch.no_grad()
def direct_inputs(frozen: Frozen, target: Target) -> list[tuple[Node, float]]:
    """What everything gives a target directly, all active latents included: the sum is its value.

    The last row of the target's graph, without the cost of any other row.
    """
    found = pull(frozen, target.reading, stop)
    weights = torch.cat([found.leaves[0], found.gradient[0] * frozen.values]).tolist()
    latents = _latent_nodes(frozen, torch.arange(len(frozen.values)))
    pairs = zip([*_leaf_nodes(frozen), *latents], weights, strict=True)
    return [(node, weight) for node, weight in pairs if weight]


class _Rows:
    """The direct inputs of the target and of the latents that were expanded so far."""

    def __init__(self, frozen: Frozen, reading: Reading) -> None:
        self._frozen = frozen
        self.latents: list[int] = []
        self._from_latents: list[Float[Tensor, "row latent"]] = []
        self._from_leaves: list[Float[Tensor, "row leaf"]] = []
        self._add(reading)

    @property
    def from_latents(self) -> Float[Tensor, "row latent"]:
        """Row 0 is the target's, then one an expanded latent."""
        return torch.cat(self._from_latents)

    @property
    def from_leaves(self) -> Float[Tensor, "row leaf"]:
        """The leaves' contributions to the same rows."""
        return torch.cat(self._from_leaves)

    def expand(self, latents: Int[Tensor, " n"]) -> None:
        """Compute the inputs of more latents."""
        owners = self._frozen.owner[latents]
        for number in owners.unique().tolist():
            for mine in latents[owners == number].split(CHUNK):
                entries = mine - self._frozen.spans[number].start
                self._add(latent_reading(self._frozen, number, entries))
                self.latents += mine.tolist()

    def most_influential(self, n: int) -> Int[Tensor, " n"]:
        """The latents not expanded yet with the largest influence on the target, at most n."""
        influence = self.influence()
        influence[self.latents] = 0
        best = influence.topk(min(n, len(influence)))
        return best.indices[best.values > 0]

    def influence(self) -> Float[Tensor, " latent"]:
        """Each latent's share of |inputs|, of |inputs| of those, and so on, over expanded rows."""
        latents, leaves = self.from_latents.abs(), self.from_leaves.abs()
        shares = latents / (latents.sum(1) + leaves.sum(1)).clamp_min(1e-300)[:, None]
        now = shares[0]
        total = now.clone()
        while bool((passing := now[self.latents]).any()):
            now = passing @ shares[1:]
            total += now
        return total

    def _add(self, reading: Reading) -> None:
        found = pull(self._frozen, reading, stop)
        self._from_latents.append(found.gradient * self._frozen.values)
        self._from_leaves.append(found.leaves)


def _assembled(
    frozen: Frozen, target: Target, rows: _Rows, tokens: tuple[str, ...], facts: dict[str, Any]
) -> AttributionGraph:
    order = torch.tensor(rows.latents, dtype=torch.long).argsort()
    kept = torch.tensor(rows.latents, dtype=torch.long)[order]
    row_order = torch.cat([order + 1, torch.zeros(1, dtype=torch.long)])
    from_latents = rows.from_latents[row_order].cpu()
    rest = from_latents.clone()
    rest[:, kept] = 0
    leaves = _leaf_nodes(frozen)
    table = torch.cat(
        [rows.from_leaves[row_order].cpu(), rest.sum(1, keepdim=True), from_latents[:, kept]], dim=1
    )
    last = Node(
        "target", target.label, len(frozen.weights.layers), target.position, None, target.value
    )
    nodes = (*leaves, Node("rest", "latents left out", -1), *_latent_nodes(frozen, kept), last)
    first_row = len(leaves) + 1
    used = (table != 0).any(0)
    used[first_row:] = True
    number = torch.cat([used, torch.ones(1, dtype=torch.bool)]).cumsum(0) - 1
    row, column = table.nonzero(as_tuple=True)
    return AttributionGraph(
        nodes=(*(n for n, u in zip(nodes[:-1], used.tolist(), strict=True) if u), last),
        source=number[column].numpy(),
        target=number[first_row + row].numpy(),
        weight=table[row, column].numpy(),
        tokens=tokens,
        counts=_counts(frozen, rows, kept, len(row)),
        facts={"saes": _places(frozen), **_explained(frozen, target), **facts},
    )


def _counts(
    frozen: Frozen, rows: _Rows, kept: Int[Tensor, " n"], n_edges: int
) -> dict[str, int | float]:
    influence = rows.influence()
    total = max(1e-300, float(influence.sum()))
    influence[kept] = 0
    return {
        "active_latents": len(frozen.values),
        "latents": len(kept),
        "latents_left_out": len(frozen.values) - len(kept),
        "influence_left_out": float(influence.sum()) / total,
        "edges": n_edges,
    }


def _explained(frozen: Frozen, target: Target) -> dict[str, Any]:
    return {
        "target": target.label,
        "value": target.value,
        "position": target.position,
        "token_ids": frozen.record.tokens[0].tolist(),
    }


def _places(frozen: Frozen) -> dict[str, dict[str, int | str]]:
    """Where each SAE stands: its block, what it reads there, and its rank in the computation."""
    return {
        active.name: {
            "layer": active.place.layer,
            "kind": active.place.kind,
            "depth": active.place.depth,
        }
        for active in frozen.actives
    }


def _leaf_nodes(frozen: Frozen) -> list[Node]:
    """One node a leaf, in the order of `Frozen.leaves`."""
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
