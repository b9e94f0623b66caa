"""Gradients and contributions in the frozen model, in one walk from the targets to the leaves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from saelab.analysis.circuits.frozen import Frozen
from saelab.analysis.circuits.readings import Reading
from saelab.lm.linear.paths import Norm
from saelab.sites import Place

Gate = Callable[[Float[Tensor, "target n"], Float[Tensor, " n"]], Float[Tensor, "target n"]]
"""Maps the gradients at latents, and their values, to the gradients passed on upstream."""
Watch = Callable[[int, Float[Tensor, "target pos d_in"]], None]
"""Told a layer, and the targets' gradient there."""


def stop(
    gradient: Float[Tensor, "target n"], values: Float[Tensor, " n"]
) -> Float[Tensor, "target n"]:
    """Passes nothing on: direct effects."""
    return torch.zeros_like(gradient)


def through(
    gradient: Float[Tensor, "target n"], values: Float[Tensor, " n"]
) -> Float[Tensor, "target n"]:
    """Passes everything on: total effects."""
    return gradient


@dataclass(frozen=True)
class Contributions:
    """Each target's contributions by source; the walk is exact, so they sum to its value.

    Attributes:
        gradient: gradient of the target by each active latent's value.
        leaves: contributions of the leaves, in the target's units.
    """

    gradient: Float[Tensor, "target latent"]
    leaves: Float[Tensor, "target leaf"]


@torch.no_grad()
def walk_back(
    frozen: Frozen,
    readings: Reading | Sequence[Reading],
    gate: Gate = through,
    at_heads: Watch | None = None,
) -> Contributions:
    """Each target's gradient by every upstream latent, and the contribution of every leaf.

    With `stop`, gradients are direct effects: all other latents are fixed. With `through`, they are
    total effects, and the leaves alone sum to the target.

    Args:
        frozen: the prompt.
        readings: what is read, at one place or at several, the deepest first. All share one walk;
            each joins it at its own place.
        gate: what a latent passes on.
        at_heads: told the gradient at each layer's hook_z, below an SAE that reads it, of the
            targets that have joined.
    """
    readings = [readings] if isinstance(readings, Reading) else readings
    return _Walk(frozen, readings, gate, at_heads).done()


class _Walk:
    """The state of a walk: the gradient in the residual stream, `[target pos d_model]`.

    `_rows` are the targets whose gradient the stream holds: those that have joined, without those
    that a dictionary over the whole stream has finished. The gradient at a parallel MLP's input is
    kept separately until its block's heads are done.
    """

    def __init__(
        self, frozen: Frozen, readings: Sequence[Reading], gate: Gate, at_heads: Watch | None
    ) -> None:
        self._frozen, self._gate, self._at_heads = frozen, gate, at_heads
        n, like = sum(len(r.weights) for r in readings), frozen.record.embed
        self._gradient = like.new_zeros(n, len(frozen.values))
        self._leaves = like.new_zeros(n, frozen.n_leaves)
        self._stream = like.new_zeros(0, frozen.n_pos, like.shape[-1])
        self._rows = slice(0, 0)
        self._beside: Tensor | float = 0.0
        waiting = [(_joins_below(frozen, reading), reading) for reading in readings]
        assert all(above >= below for (above, _), (below, _) in pairwise(waiting))
        for place in reversed(_places(len(frozen.weights.layers))):
            while waiting and waiting[0][0] > place.depth:
                self._join(waiting.pop(0)[1])
            if len(self._stream):
                self._step(place)
        for _, reading in waiting:
            self._join(reading)
        self._add("embedding", (self._stream * like[0]).sum(-1))
        self._add("position", (self._stream * frozen.record.position[0]).sum(-1))

    def done(self) -> Contributions:
        return Contributions(self._gradient, self._leaves)

    def _join(self, reading: Reading) -> None:
        """Carry a reading into the residual stream, beside the targets that are there."""
        first, joined = self._rows.start, self._rows.stop
        self._rows = slice(joined, joined + len(reading.weights))
        self._add(reading.constant_leaf, reading.constant)
        self._stream = torch.cat([self._stream, self._carried(reading)])
        self._rows = slice(first, self._rows.stop)

    def _carried(self, reading: Reading) -> Float[Tensor, "target pos d_model"]:
        frozen, place = self._frozen, reading.place
        if place is None:
            norm, scale = frozen.weights.ln_final, frozen.record.ln_final_scale[0]
            self._add("bias ln_final", (reading.weights @ norm.bias).sum(-1))
            return norm.transpose(reading.weights, scale)
        if place.kind == "residual":
            return reading.weights
        if place.kind == "heads":
            return self._heads_input(place.layer, reading.weights)
        if place.kind == "mlp":
            return self._mlp_input(place.layer, reading.weights)
        active, at_out = frozen.actives[frozen.at_place[place]], reading.weights
        if not active.before_post:
            at_out = self._before_post(place.layer, at_out)
        return self._attention_input(place.layer, at_out)

    def _step(self, place: Place) -> None:
        number = self._frozen.at_place.get(place)
        if place.kind == "mlp":
            self._mlp(place.layer, number)
        elif place.kind == "heads":
            at_out = self._at_attention(place.layer)
            given = self._attention_input(place.layer, at_out) if len(at_out) else 0.0
            self._stream, self._beside = self._stream + given + self._beside, 0.0
        elif number is not None:
            self._stream = self._dictionary(number, self._stream)
            if not len(self._stream):
                self._rows = slice(self._rows.stop, self._rows.stop)

    def _mlp(self, layer: int, number: int | None) -> None:
        weights, record = self._frozen.weights.layers[layer], self._frozen.record.layers[layer]
        at_out = self._stream
        if number is None:
            self._add(f"mlp {layer}", (at_out * record.mlp_out[0]).sum(-1))
            return
        if self._frozen.actives[number].before_post:
            at_out = weights.mlp_post.transpose(at_out, record.mlp_post_scale[0])
        at_in = self._dictionary(number, at_out)
        if not len(at_in):
            return
        given = self._mlp_input(layer, at_in)
        if weights.parallel:
            self._beside = given
        else:
            self._stream = self._stream + given

    def _at_attention(self, layer: int) -> Float[Tensor, "passed pos d_model"]:
        """The gradient at `z W_O + b_O`, from the stream's and past an SAE on the output."""
        number = self._frozen.at_place.get(Place(layer, "attention"))
        if number is None:
            return self._before_post(layer, self._stream)
        if self._frozen.actives[number].before_post:
            return self._dictionary(number, self._before_post(layer, self._stream))
        return self._before_post(layer, self._dictionary(number, self._stream))

    def _before_post(
        self, layer: int, at_out: Float[Tensor, "target pos d_model"]
    ) -> Float[Tensor, "target pos d_model"]:
        weights, record = self._frozen.weights.layers[layer], self._frozen.record.layers[layer]
        return weights.attn_post.transpose(at_out, record.attn_post_scale[0])

    def _attention_input(
        self, layer: int, at_out: Float[Tensor, "target pos d_model"]
    ) -> Float[Tensor, "target pos d_model"]:
        """From `z W_O + b_O` through the heads, and their SAE if there is one, to the stream."""
        weights = self._frozen.weights.layers[layer]
        self._add(f"bias b_O {layer}", (at_out @ weights.b_O).sum(-1))
        at_z = einsum(at_out, weights.W_O, "t p m, h e m -> t p h e").flatten(2)
        if (number := self._frozen.at_place.get(Place(layer, "heads"))) is not None:
            at_z = self._dictionary(number, at_z)
        return self._heads_input(layer, at_z) if len(at_z) else torch.zeros_like(at_out)

    def _heads_input(
        self, layer: int, at_z: Float[Tensor, "target pos d_in"]
    ) -> Float[Tensor, "target pos d_model"]:
        """From the heads' outputs through values and the first norm to the stream."""
        weights, record = self._frozen.weights.layers[layer], self._frozen.record.layers[layer]
        if self._at_heads is not None:
            self._at_heads(layer, at_z)
        by_head = rearrange(at_z, "t p (h e) -> t p h e", h=len(weights.W_O))
        at_v = einsum(record.pattern[0], by_head, "h d s, t d h e -> t s h e")
        self._add(f"bias b_V {layer}", einsum(at_v, weights.b_V, "t s h e, h e -> t"))
        at_x = einsum(at_v, weights.W_V, "t s h e, h m e -> t s m")
        return self._norm_input(f"ln1 {layer}", weights.ln1, record.ln1_scale[0], at_x)

    def _mlp_input(
        self, layer: int, at_x: Float[Tensor, "target pos d_model"]
    ) -> Float[Tensor, "target pos d_model"]:
        """From a transcoder's input through the second norm to the stream that it reads."""
        weights, record = self._frozen.weights.layers[layer], self._frozen.record.layers[layer]
        return self._norm_input(f"ln2 {layer}", weights.ln2, record.ln2_scale[0], at_x)

    def _norm_input(
        self,
        name: str,
        norm: Norm,
        scale: Float[Tensor, "pos 1"],
        at_x: Float[Tensor, "target pos d_model"],
    ) -> Float[Tensor, "target pos d_model"]:
        self._add(f"bias {name}", (at_x @ norm.bias).sum(-1))
        return norm.transpose(at_x, scale)

    def _dictionary(
        self, number: int, at_out: Float[Tensor, "target pos d_out"]
    ) -> Float[Tensor, "passed pos d_in"]:
        """Record contributions of latents, error and b_dec; returns the gradient at the input.

        It has no rows if nothing passes.
        """
        active = self._frozen.actives[number]
        self._add(f"error {active.name}", (at_out * active.error).sum(-1))
        self._add(f"b_dec {active.name}", (at_out * active.b_dec).sum((-1, -2)))
        for source, further in self._frozen.from_below.get(active.place, ()):
            lands = at_out * further.lands[:, None]
            given = self._frozen.actives[source].decoder_products(lands, further.rows)
            self._gradient[self._rows, self._frozen.spans[source]] += given
        # Later layers that the latents write to were passed before.
        gradient = self._gradient[self._rows, self._frozen.spans[number]]
        gradient += active.decoder_products(at_out)
        # No latent is on the path past them, so direct effects go there too.
        past = None if active.skip is None else active.skip.transpose(at_out)
        if self._gate is stop:
            return at_out[:0] if past is None else past
        passed = self._gate(gradient, active.codes.values)
        self._add(f"encoder {active.name}", passed @ active.codes.constant)
        at_in = active.encoder_sums(passed)
        return at_in if past is None else at_in + past

    def _add(self, leaf: str, contribution: Float[Tensor, "target *pos"]) -> None:
        span = self._frozen.leaves[leaf]
        self._leaves[self._rows, span] += contribution.reshape(-1, span.stop - span.start)


def _joins_below(frozen: Frozen, reading: Reading) -> int:
    """Places of less depth follow after the reading was carried into the stream."""
    place, n_layers = reading.place, len(frozen.weights.layers)
    if place is None:
        return Place(n_layers, "residual").depth + 1
    parallel = place.layer < n_layers and frozen.weights.layers[place.layer].parallel
    if place.kind == "attention" or (place.kind == "mlp" and parallel):
        # A parallel MLP reads the stream before its own block's heads.
        return Place(place.layer, "heads").depth
    return place.depth


def _places(n_layers: int) -> list[Place]:
    """All places of a model, in the order in which it computes them."""
    blocks = [
        Place(layer, kind) for layer in range(n_layers) for kind in ("residual", "heads", "mlp")
    ]
    return [*blocks, Place(n_layers, "residual")]
