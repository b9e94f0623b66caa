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

from saelab.analysis.circuits.backward_walk import Reading, latent_reading, stop, walk_back
from saelab.analysis.circuits.frozen import Frozen
from saelab.analysis.circuits.graph_data import AttributionGraph
from saelab.analysis.circuits.nodes import Node
from saelab.analysis.circuits.targets import Target
from saelab.config import Config

CHUNK = 128
"""Latents whose inputs are computed together, at most; fewer where the walk would need more than
WORKSPACE."""
WORKSPACE = 2**26
"""Bytes of the arrays of one walk: targets times (active latents, leaves, prompt times width)."""
N_INPUTS = 4096
"""Latents that a row keeps apart, the largest; the others are its part of `rest`."""


class GraphOptions(Config):
    """How much of a prompt's graph is computed."""

    max_nodes: int = Field(default=256, gt=0)
    """Latents in the graph, the most influential ones; the others' contributions are kept as the
    sum `rest` for each node. Memory is 16 bytes times this times the active latents (4,096 of them
    at most, the largest inputs of each) and 8 times the leaves."""
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
    found = walk_back(frozen, target.reading, stop)
    weights = torch.cat([found.leaves[0], found.gradient[0] * frozen.values]).tolist()
    latents = _latent_nodes(frozen, torch.arange(len(frozen.values)))
    pairs = zip([*_leaf_nodes(frozen), *latents], weights, strict=True)
    return [(node, weight) for node, weight in pairs if weight]


class _Rows:
    """The direct inputs of the target and of the latents that were expanded so far.

    Row 0 is the target's. A row keeps its N_INPUTS largest inputs from latents, and of the others
    their sum and the sum of their magnitudes, so memory does not grow with the active latents.
    """

    def __init__(self, frozen: Frozen, reading: Reading) -> None:
        self._frozen = frozen
        self.latents: list[int] = []
        self._n_inputs = min(N_INPUTS, len(frozen.values))
        like, rows = frozen.record.embed, (0, self._n_inputs)
        self.source = torch.zeros(rows, dtype=torch.long, device=like.device)
        self.weight = like.new_zeros(rows)
        self.from_leaves = like.new_zeros(0, frozen.n_leaves)
        self.others = like.new_zeros(0, 2)
        self._add(reading)

    def expand(self, latents: Int[Tensor, " n"]) -> None:
        """Compute the inputs of more latents."""
        owners, at_once = self._frozen.owner[latents], _targets_at_once(self._frozen)
        for number in owners.unique().tolist():
            for mine in latents[owners == number].split(at_once):
                entries = mine - self._frozen.spans[number].start
                self._add(latent_reading(self._frozen, number, entries))
                self.latents += mine.tolist()

    def most_influential(self, n: int) -> Int[Tensor, " n"]:
        """The latents not expanded yet with the largest influence on the target, at most n."""
        influence, _ = self.influence()
        influence[self.latents] = 0
        best = influence.topk(min(n, len(influence)))
        return best.indices[best.values > 0]

    def influence(self) -> tuple[Float[Tensor, " latent"], float]:
        """Each latent's share of |inputs|, of |inputs| of those, and so on, over expanded rows.

        And that of the inputs that rows did not keep apart.
        """
        size = self.weight.abs()
        whole = size.sum(1) + self.others[:, 1] + self.from_leaves.abs().sum(1)
        passing = torch.zeros_like(whole)
        passing[0] = 1.0
        total, unkept = torch.zeros_like(self._frozen.values), 0.0
        while bool(passing.any()):
            share = passing / whole.clamp_min(1e-300)
            now = torch.zeros_like(total).index_add(
                0, self.source.flatten(), (share[:, None] * size).flatten()
            )
            unkept += float(share @ self.others[:, 1])
            total += now
            passing = torch.cat([passing.new_zeros(1), now[self.latents]])
        return total, unkept

    def _add(self, reading: Reading) -> None:
        found = walk_back(self._frozen, reading, stop)
        given = found.gradient * self._frozen.values
        kept = given.abs().topk(self._n_inputs, dim=1).indices
        weight = given.gather(1, kept)
        others = given.scatter(1, kept, 0.0)
        sums = torch.stack([others.sum(1), others.abs().sum(1)], dim=1)
        self.source = torch.cat([self.source, kept])
        self.weight = torch.cat([self.weight, weight])
        self.others = torch.cat([self.others, sums])
        self.from_leaves = torch.cat([self.from_leaves, found.leaves])


def _targets_at_once(frozen: Frozen) -> int:
    """How many targets' walks fit into the workspace together."""
    widest = max([frozen.record.embed.shape[-1], *(a.error.shape[1] for a in frozen.actives)])
    # The gradients, contributions, their magnitudes, and those that a row does not keep apart.
    numbers = 5 * len(frozen.values) + frozen.n_leaves + 6 * frozen.n_pos * widest
    return max(1, min(CHUNK, WORKSPACE // (8 * numbers)))


def _assembled(
    frozen: Frozen, target: Target, rows: _Rows, tokens: tuple[str, ...], facts: dict[str, Any]
) -> AttributionGraph:
    kept, order = torch.tensor(rows.latents, dtype=torch.long).sort()
    row_order = torch.cat([order + 1, torch.zeros(1, dtype=torch.long)])
    source, weight = rows.source.cpu()[row_order], rows.weight.cpu()[row_order]
    place = torch.full((len(frozen.values),), -1)
    place[kept] = torch.arange(len(kept))
    inside = (place[source] >= 0) & (weight != 0)
    rest = (weight * (place[source] < 0)).sum(1) + rows.others.cpu()[row_order, 0]
    left = torch.cat([rows.from_leaves.cpu()[row_order], rest[:, None]], dim=1)
    first = torch.nonzero(left, as_tuple=True)
    second = torch.nonzero(inside, as_tuple=True)
    row = torch.cat([first[0], second[0]])
    column = torch.cat([first[1], left.shape[1] + place[source[second]]])
    amount = torch.cat([left[first], weight[second]])
    leaves = [*_leaf_nodes(frozen), Node("rest", "latents left out", -1)]
    used = torch.cat([(left != 0).any(0), torch.ones(len(kept) + 1, dtype=torch.bool)])
    number = used.cumsum(0) - 1
    last = Node(
        "target", target.label, len(frozen.weights.layers), target.position, None, target.value
    )
    nodes = [*leaves, *_latent_nodes(frozen, kept), last]
    return AttributionGraph(
        nodes=tuple(node for node, keep in zip(nodes, used.tolist(), strict=True) if keep),
        source=number[column].numpy(),
        target=number[len(leaves) + row].numpy(),
        weight=amount.numpy(),
        tokens=tokens,
        counts=_counts(frozen, rows, kept, len(row)),
        facts={"saes": _places(frozen), **_explained(frozen, target), **facts},
    )


def _counts(
    frozen: Frozen, rows: _Rows, kept: Int[Tensor, " n"], n_edges: int
) -> dict[str, int | float]:
    influence, unkept = rows.influence()
    total = max(1e-300, float(influence.sum()) + unkept)
    influence[kept] = 0
    return {
        "active_latents": len(frozen.values),
        "latents": len(kept),
        "latents_left_out": len(frozen.values) - len(kept),
        "influence_left_out": (float(influence.sum()) + unkept) / total,
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
    """Where each SAE stands: its block, what it reads there, its rank in the computation.

    And the positions where it is not applied, since its training left such tokens out.
    """
    return {
        active.name: {
            "layer": active.place.layer,
            "kind": active.place.kind,
            "depth": active.place.depth,
            "left_out": (~active.applies).nonzero()[:, 0].tolist(),
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
