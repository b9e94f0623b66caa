"""Why a head looks where it looks: its score as a sum over pairs of query and key components.

score[h, d, s] = q . k / sqrt(d_head) is a product of two sums, over the components of the residual
stream at d and at s (norm scales held fixed, both turned by their positions where the model is
rotary). Attributing a score is second order, so it is a table of pairs and not a gradient.
"""

from dataclasses import dataclass

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from saelab.analysis.attention.components import residual_components
from saelab.analysis.circuits.frozen import Frozen
from saelab.analysis.circuits.nodes import Node
from saelab.config import UsageError
from saelab.lm.internals import LayerWeights


@dataclass(frozen=True)
class ScorePairs:
    """One head's score from `dest` to `source`, taken apart.

    Attributes:
        queries: components at `dest`, the last one the constants (norm's bias and b_Q).
        keys: components at `source`, likewise.
        products: each pair's part of the score; all of them sum to it.
        pattern: the attention that came of it, after the softmax.
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
        """Q . k / sqrt(d_head)."""
        return float(self.products.sum())

    @property
    def by_query(self) -> Float[Tensor, " query"]:
        """Each query component with the whole key."""
        return self.products.sum(1)

    @property
    def by_key(self) -> Float[Tensor, " key"]:
        """Each key component with the whole query."""
        return self.products.sum(0)

    def top(self, n: int = 10) -> list[tuple[Node, Node, float]]:
        """The pairs with the largest |part|, largest first."""
        flat = self.products.flatten()
        best = flat.abs().topk(min(n, len(flat))).indices.tolist()
        width = len(self.keys)
        return [(self.queries[i // width], self.keys[i % width], float(flat[i])) for i in best]

    def figure(self, n: int = 12) -> go.Figure:
        """The pairs with the largest parts."""
        from saelab.analysis.attention.figures import score_figure

        return score_figure(self, n)


@torch.no_grad()
def score_pairs(frozen: Frozen, layer: int, head: int, dest: int, source: int) -> ScorePairs:
    """The score of one head at (dest, source), by pairs of components.

    Compare two sources with the difference of their tables' marginals: only differences of scores
    move the attention.

    Raises:
        UsageError: the head or a position does not exist, or the source lies ahead.
    """
    _check(frozen, layer, head, dest, source)
    weights, record = frozen.weights.layers[layer], frozen.record.layers[layer]
    queries, q = _side(frozen, layer, dest, weights.W_Q[head], weights.b_Q[head])
    keys, k = _side(frozen, layer, source, weights.W_K[head], weights.b_K[head])
    products = q @ k.T / q.shape[-1] ** 0.5
    pattern = float(record.pattern[0, head, dest, source])
    return ScorePairs(layer, head, dest, source, queries, keys, products, pattern)


def _side(
    frozen: Frozen,
    layer: int,
    position: int,
    W: Float[Tensor, "d_model d_head"],
    b: Float[Tensor, " d_head"],
) -> tuple[tuple[Node, ...], Float[Tensor, "n d_head"]]:
    weights, record = frozen.weights.layers[layer], frozen.record.layers[layer]
    parts = residual_components(frozen, layer, position)
    linear = weights.ln1.linear(parts.vectors, record.ln1_scale[0, position])
    vectors = torch.cat([linear @ W, (weights.ln1.bias @ W + b)[None]])
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
