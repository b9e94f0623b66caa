"""The components of the residual stream at one token: latents where SAEs read, else whole parts."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from saelab.analysis.circuits.active import Active
from saelab.analysis.circuits.frozen import Frozen
from saelab.analysis.circuits.nodes import Node
from saelab.lm.linear.paths import Norm
from saelab.sae.affine import TakenRows
from saelab.sites import Place


@dataclass(frozen=True)
class Components:
    """Vectors that sum to the residual stream at one layer and position.

    Attributes:
        nodes: the node of each vector.
        vectors: `[n d_model]`.
    """

    nodes: tuple[Node, ...]
    vectors: Float[Tensor, "n d_model"]


def residual_components(
    frozen: Frozen, layer: int, position: int, *, use_residual_saes: bool = True
) -> Components:
    """The components of the stream before block `layer`.

    If an SAE reads the stream further down, its latents, error and b_dec replace everything below;
    otherwise the components go down to the embeddings. Above that: attention latents, errors and
    biases where an SAE reads hook_attn_out or hook_z, else heads; a transcoder's latents, else MLP
    outputs. As in the graph, the part that a skip connection carries past a transcoder's latents
    belongs to the components that it read.

    Args:
        frozen: the prompt.
        layer: 0 to n_layers.
        position: in the prompt.
        use_residual_saes: False ignores SAEs on the stream.
    """
    saes = [below for below in range(layer + 1) if Place(below, "residual") in frozen.at_place]
    if saes and use_residual_saes:
        base = saes[-1]
        stream = _written(frozen.actives[frozen.at_place[Place(base, "residual")]], position, None)
    else:
        base, stream = 0, _embeddings(frozen, position)
    for below in range(base, layer):
        stream = _past_block(frozen, below, position, stream)
    # A latent of a cross-layer transcoder was written once a layer.
    summed: dict[Node, Tensor] = {}
    for node, vector in stream:
        summed[node] = summed[node] + vector if node in summed else vector
    return Components(tuple(summed), torch.stack(list(summed.values())))


def _embeddings(frozen: Frozen, position: int) -> list[tuple[Node, Tensor]]:
    embed, place = frozen.record.embed[0, position], frozen.record.position[0, position]
    return [
        (Node("embedding", "embedding", -1, position), embed),
        (Node("position", "position", -1, position), place),
    ]


def _past_block(
    frozen: Frozen, layer: int, position: int, stream: list[tuple[Node, Tensor]]
) -> list[tuple[Node, Tensor]]:
    """The components of the stream after a block, from those before it."""
    weights, record = frozen.weights.layers[layer], frozen.record.layers[layer]
    heads, number = _heads(frozen, layer, position), frozen.at_place.get(Place(layer, "mlp"))
    if number is None:
        out = record.mlp_out[0, position]
        return [(Node("mlp", f"mlp {layer}", layer, position), out), *heads, *stream]
    active = frozen.actives[number]
    skip, written = active.skip, _written(active, position, None)
    for source, further in frozen.from_below.get(active.place, ()):
        if further.lands[position]:
            written += _latents(frozen.actives[source], position, further.rows)
    post = (weights.mlp_post, record.mlp_post_scale[0, position]) if active.before_post else None
    if skip is None or not skip.applies[position]:
        return [*_posted(post, written), *heads, *stream]
    past, read = (heads, stream) if weights.parallel else ([], heads + stream)

    def carried(x: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
        skipped = weights.ln2.linear(x, record.ln2_scale[0, position]) @ skip.W
        return x + (skipped if post is None else post[0].linear(skipped, post[1]))

    bias = (Node("bias", f"ln2 {layer}", layer, position), weights.ln2.bias @ skip.W)
    return [*_posted(post, [*written, bias]), *past, *_changed(read, carried)]


def _heads(frozen: Frozen, layer: int, position: int) -> list[tuple[Node, Tensor]]:
    weights, record = frozen.weights.layers[layer], frozen.record.layers[layer]
    post = (weights.attn_post, record.attn_post_scale[0, position])
    if (number := frozen.at_place.get(Place(layer, "attention"))) is not None:
        active = frozen.actives[number]
        written = _written(active, position, None)
        return _posted(post if active.before_post else None, written)
    if (number := frozen.at_place.get(Place(layer, "heads"))) is not None:
        found = _written(frozen.actives[number], position, weights.W_O.flatten(0, 1))
    else:
        by_head = einsum(record.z[0, position], weights.W_O, "h e, h e m -> h m")
        found = [
            (Node("heads", f"head {layer}.{head}", layer, position), vector)
            for head, vector in enumerate(by_head)
        ]
    bias = (Node("bias", f"b_O {layer}", layer, position), weights.b_O)
    return _posted(post, [*found, bias])


def _posted(
    post: tuple[Norm, Float[Tensor, " 1"]] | None, found: list[tuple[Node, Tensor]]
) -> list[tuple[Node, Tensor]]:
    """Parts of an attention or MLP output as they enter the stream, after a post-norm."""
    return found if post is None else _changed(found, lambda x: post[0].linear(x, post[1]))


def _changed(
    found: list[tuple[Node, Tensor]], change: Callable[[Tensor], Tensor]
) -> list[tuple[Node, Tensor]]:
    """The vectors after a change of all at once; thousands of small ones keep a GPU waiting."""
    nodes, vectors = zip(*found, strict=True)
    return list(zip(nodes, change(torch.stack(vectors)), strict=True))


def _written(
    active: Active, position: int, W_O: Float[Tensor, "d_in d_model"] | None
) -> list[tuple[Node, Tensor]]:
    """An SAE's latents, error and b_dec at a position, as they enter the stream."""
    layer = active.place.layer
    found = [
        *_latents(active, position, active.decoder),
        (Node("error", active.name, layer, position), active.error[position]),
        (Node("bias", f"b_dec {active.name}", layer, position), active.b_dec[position]),
    ]
    return found if W_O is None else _changed(found, lambda x: x @ W_O)


def _latents(
    active: Active, position: int, rows: Float[Tensor, "n d"] | TakenRows
) -> list[tuple[Node, Tensor]]:
    """Its latents at a position, as these decoder rows write them."""
    span, layer, codes = active.at[position], active.place.layer, active.codes
    numbers, values = codes.latent[span].tolist(), codes.values[span].tolist()
    nodes = (
        Node("latent", active.name, layer, position, latent, value)
        for latent, value in zip(numbers, values, strict=True)
    )
    return list(zip(nodes, codes.values[span, None] * rows[span], strict=True))
