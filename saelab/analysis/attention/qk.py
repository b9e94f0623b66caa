"""Why a head attends to a token: its score as a sum over pairs of query and key components.

score[h, d, s] = q . k times the model's scaling (mostly 1 / sqrt(d_head)) is a product of two sums,
over the components of the residual stream at d and at s. Scales of norms are held fixed, those of
queries and keys too; both are rotated by their positions if the block is rotary. A score is of
second order in the components, so its attribution is a table of pairs, not a gradient. A soft cap
comes after the sum.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saelab import drawing
from saelab.analysis.attention.components import residual_components
from saelab.analysis.circuits.frozen import Frozen
from saelab.analysis.circuits.nodes import Node
from saelab.config import UsageError
from saelab.lm.linear.paths import LayerWeights, Norm


@dataclass(frozen=True)
class ScorePairs:
    """One head's score from `dest` to `source`, by pairs of components.

    Attributes:
        queries: components at `dest`; the last is the constants (norms' biases and b_Q).
        keys: components at `source`; the last is the constants (norms' biases and b_K).
        products: each pair's part of the score; they sum to the score.
        pattern: the resulting attention, after the softmax.
    """

    layer: int
    head: int
    dest: int
    source: int
    queries: tuple[Node, ...]
    keys: tuple[Node, ...]
    products: Float[Tensor, "query key"]
    pattern: float

    @property
    def score(self) -> float:
        """The score q . k times the model's scaling, before a soft cap."""
        return float(self.products.sum())

    @property
    def by_query(self) -> Float[Tensor, " query"]:
        """The part of each query component, with the whole key."""
        return self.products.sum(1)

    @property
    def by_key(self) -> Float[Tensor, " key"]:
        """The part of each key component, with the whole query."""
        return self.products.sum(0)

    def top(self, n: int = 10) -> list[tuple[Node, Node, float]]:
        """The pairs with the largest |part|, the largest first."""
        flat = self.products.flatten()
        best = flat.abs().topk(min(n, len(flat))).indices.tolist()
        width = len(self.keys)
        return [(self.queries[i // width], self.keys[i % width], float(flat[i])) for i in best]

    figure = drawing.figure


@torch.no_grad()
def score_pairs(frozen: Frozen, layer: int, head: int, dest: int, source: int) -> ScorePairs:
    """The score of one head at (dest, source), by pairs of components.

    To compare two sources, take the difference of their tables' marginals, since attention depends
    only on differences of scores.

    Raises:
        UsageError: the head or a position does not exist, or the source is later than `dest`.
    """
    _check(frozen, layer, head, dest, source)
    weights, record = frozen.weights.layers[layer], frozen.record.layers[layer]
    norms = (weights.q_norm.of_head(head), weights.k_norm.of_head(head))
    scales = (record.q_scale[0, dest, head], record.k_scale[0, source, head])
    read = ((weights.W_Q[head], weights.b_Q[head]), (weights.W_K[head], weights.b_K[head]))
    queries, q = _side(frozen, layer, dest, read[0], (norms[0], scales[0]))
    keys, k = _side(frozen, layer, source, read[1], (norms[1], scales[1]))
    products = q @ k.T * weights.scaling
    pattern = float(record.pattern[0, head, dest, source])
    return ScorePairs(layer, head, dest, source, queries, keys, products, pattern)


def _side(
    frozen: Frozen,
    layer: int,
    position: int,
    read: tuple[Float[Tensor, "d_model d_head"], Float[Tensor, " d_head"]],
    norm: tuple[Norm, Float[Tensor, " 1"]],
) -> tuple[tuple[Node, ...], Float[Tensor, "n d_head"]]:
    weights, record = frozen.weights.layers[layer], frozen.record.layers[layer]
    (W, b), (own, scale) = read, norm
    parts = residual_components(frozen, layer, position)
    linear = weights.ln1.linear(parts.vectors, record.ln1_scale[0, position])
    vectors = own.linear(torch.cat([linear @ W, (weights.ln1.bias @ W + b)[None]]), scale)
    vectors[-1] += own.bias
    constant = Node("bias", f"query and key biases {layer}", layer, position)
    return (*parts.nodes, constant), _turned(weights, vectors, position)


def _turned(
    weights: LayerWeights, x: Float[Tensor, "n d_head"], position: int
) -> Float[Tensor, "n d_head"]:
    places = torch.full((1,), position, device=x.device)
    return weights.rotate(x[:, None, None], places)[:, 0, 0]


def _check(frozen: Frozen, layer: int, head: int, dest: int, source: int) -> None:
    n_layers, n_heads = len(frozen.weights.layers), len(frozen.weights.layers[0].W_Q)
    if not (0 <= layer < n_layers and 0 <= head < n_heads):
        raise UsageError(
            f"There is no head {layer}.{head}; the model has layers 0 to {n_layers - 1} of heads "
            f"0 to {n_heads - 1}."
        )
    if not 0 <= source <= dest < frozen.n_pos:
        raise UsageError(
            f"A head at position {dest} cannot look at {source}: positions are 0 to "
            f"{frozen.n_pos - 1}, and it sees none ahead of it."
        )
