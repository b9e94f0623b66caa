"""Which attention carries a target's value, and why a head looked there: QK attribution in a graph.

With patterns held fixed, a head moves pattern[h, d, s] * v[s, h] from a source token to a
destination. Times the target's gradient there this is the head's loading: the part of the target's
value that goes along this one attention weight, over all paths. Why the weight is large no graph of
fixed patterns says: its score is a sum over pairs of query and key components (see `qk.py`).
"""

from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from saelab.analysis.attention.qk import ScorePairs, score_pairs
from saelab.analysis.circuits.backward_walk import walk_back
from saelab.analysis.circuits.frozen import Frozen
from saelab.analysis.circuits.nodes import Node
from saelab.analysis.circuits.targets import Target

N_PAIRS = 8
"""Pairs of components kept of each score, the largest ones; the others are in sums by kind."""


@dataclass(frozen=True)
class HeadLoading:
    """One attention weight: how much of the target goes along it, and what its score is made of.

    Attributes:
        gives: the part of the target's value, in its units, over all paths.
        advantage: the score minus the head's mean score over all sources that it sees from there;
            attention depends only on such differences.
        pairs: the score by pairs of components.
    """

    gives: float
    advantage: float
    pairs: ScorePairs

    def values(self) -> dict[str, Any]:
        """The loading as plain values: ends, score, largest pairs, and the score's sum by kind."""
        pairs = self.pairs
        ends = {name: getattr(pairs, name) for name in ("layer", "head", "dest", "source")}
        return ends | {
            "gives": self.gives,
            "pattern": pairs.pattern,
            "score": pairs.score,
            "advantage": self.advantage,
            "pairs": [
                {"query": _node(query), "key": _node(key), "part": part}
                for query, key, part in pairs.top(N_PAIRS)
            ],
            "by_kind": score_by_kind(pairs),
        }


def score_by_kind(pairs: ScorePairs) -> dict[str, float]:
    """A score's sum over pairs by what they are; the four parts sum to the score.

    `latents`: of two latents. `errors`: at least one SAE error. `constants`: of the others, those
    with at least one bias. `whole`: the rest, with at least one embedding, MLP or head as it is.
    """
    query, key = _kinds(pairs.queries), _kinds(pairs.keys)
    # The larger number of the two decides: latent 0, whole 1, constant 2, error 3.
    kind = torch.maximum(query[:, None], key[None])
    names = ("latents", "whole", "constants", "errors")
    products = pairs.products.cpu()
    return {name: float(products[kind == number].sum()) for number, name in enumerate(names)}


@torch.no_grad()
def attention_flow(frozen: Frozen, target: Target) -> dict[int, Float[Tensor, "head dest source"]]:
    """By layer, the part of the target's value that goes along each attention weight.

    Over all paths, so a path through two layers counts in both. Layers above the target are absent.
    """
    found: dict[int, Tensor] = {}

    def at_heads(layer: int, gradient: Float[Tensor, "target pos d_in"]) -> None:
        record = frozen.record.layers[layer]
        at_z = rearrange(gradient[0], "d (h e) -> d h e", h=record.v.shape[2])
        read = einsum(at_z, record.v[0], "d h e, s h e -> h d s")
        found[layer] = read * record.pattern[0]

    walk_back(frozen, target.reading, at_heads=at_heads)
    return found


@torch.no_grad()
def head_loadings(frozen: Frozen, target: Target, n: int) -> tuple[HeadLoading, ...]:
    """The `n` attention weights that carry most of the target's value, the largest first.

    Weights from a token to itself move nothing between tokens and are left out.
    """
    if not n:
        return ()
    largest: list[tuple[float, int, int, int, int]] = []
    for layer, whole in attention_flow(frozen, target).items():
        flow = whole - torch.diag_embed(whole.diagonal(dim1=1, dim2=2))
        best = flow.abs().flatten().topk(min(n, flow.numel())).indices
        for place in best.tolist():
            head, rest = divmod(place, frozen.n_pos**2)
            dest, source = divmod(rest, frozen.n_pos)
            if given := float(flow[head, dest, source]):
                largest.append((given, layer, head, dest, source))
    largest.sort(key=lambda one: -abs(one[0]))
    return tuple(
        HeadLoading(given, _advantage(frozen, *at), score_pairs(frozen, *at))
        for given, *at in largest[:n]
    )


def _advantage(frozen: Frozen, layer: int, head: int, dest: int, source: int) -> float:
    weights, record = frozen.weights.layers[layer], frozen.record.layers[layer]
    scores = record.k[0, :, head] @ record.q[0, dest, head] * weights.scaling
    seen = record.pattern[0, head, dest] > 0
    return float(scores[source] - scores[seen].mean())


def _kinds(nodes: tuple[Node, ...]) -> Tensor:
    order = {"latent": 0, "bias": 2, "error": 3}
    return torch.tensor([order.get(node.kind, 1) for node in nodes])


def _node(node: Node) -> dict[str, Any]:
    names = ("kind", "name", "layer", "position", "latent")
    return {name: getattr(node, name) for name in names} | {"label": node.label()}
