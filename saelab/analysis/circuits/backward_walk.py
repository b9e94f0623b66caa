"""Gradients and contributions in the frozen model, in one walk from the targets to the leaves."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from saelab.analysis.circuits.frozen import Active, Frozen
from saelab.lm.linear.paths import Norm, soft_capped
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
class Reading:
    """Linear functionals of the frozen model's activations, one per target.

    Attributes:
        place: the site that they read; None for the output of the final norm.
        weights: weights of each position.
        constant: constant that is added.
        constant_leaf: the leaf that the constant belongs to.
    """

    place: Place | None
    weights: Float[Tensor, "target pos d"]
    constant: Float[Tensor, " target"]
    constant_leaf: str


@dataclass(frozen=True)
class Contributions:
    """Each target's contributions by source; the walk is exact, so they sum to its value.

    Attributes:
        gradient: gradient of the target by each active latent's value.
        leaves: contributions of the leaves, in the target's units.
    """

    gradient: Float[Tensor, "target latent"]
    leaves: Float[Tensor, "target leaf"]


def latent_reading(frozen: Frozen, number: int, entries: Int[Tensor, " target"]) -> Reading:
    """The values of latents of SAE `number`; `entries` are indices in that SAE."""
    active = frozen.actives[number]
    codes = active.codes
    weights = codes.values.new_zeros(len(entries), frozen.n_pos, codes.encoder.shape[1])
    weights[torch.arange(len(entries), device=weights.device), codes.row[entries]] = codes.encoder[
        entries
    ]
    return Reading(active.place, weights, codes.constant[entries], f"encoder {active.name}")


def logit_reading(
    frozen: Frozen, position: int, coefficients: Float[Tensor, " d_vocab"]
) -> Reading:
    """The sum over the vocabulary of coefficient times logit, at one position.

    If logits are soft-capped, l -> c tanh(l / c), each has the cap's slope at its value on the
    prompt; the remaining difference is part of the constant.
    """
    model = frozen.weights
    final, used = frozen.record.final(model)[0, position], coefficients.nonzero()[:, 0]
    weights = frozen.record.embed.new_zeros(1, frozen.n_pos, frozen.record.embed.shape[-1])
    constant = coefficients.new_zeros(1)
    for part in used.split(4096):
        columns, given = model.unembedding(part), coefficients[part]
        slopes = torch.ones_like(given)
        if model.soft_cap is not None:
            linear = model.linear_logits(final, part)
            capped = soft_capped(linear, model.soft_cap)
            slopes = 1 - (capped / model.soft_cap).square()
            constant += given @ (capped - slopes * linear)
        weights[0, position] += (given * slopes) @ columns
        constant += (given * slopes) @ model.b_U[part]
    return Reading(None, weights, constant, frozen.logit_constant)


@torch.no_grad()
def walk_back(
    frozen: Frozen, reading: Reading, gate: Gate = through, at_heads: Watch | None = None
) -> Contributions:
    """Each target's gradient by every upstream latent, and the contribution of every leaf.

    With `stop`, gradients are direct effects: all other latents are fixed. With `through`, they are
    total effects, and the leaves alone sum to the target. `at_heads` is told the targets' gradient
    at each layer's hook_z, below an SAE that reads it.
    """
    return _Walk(frozen, reading, gate, at_heads).done()


class _Walk:
    """The state of a walk: the gradient in the residual stream, `[target pos d_model]`.

    The gradient at a parallel MLP's input is kept separately until its block's heads are done.
    """

    def __init__(
        self, frozen: Frozen, reading: Reading, gate: Gate, at_heads: Watch | None
    ) -> None:
        self._frozen, self._gate, self._at_heads = frozen, gate, at_heads
        n = len(reading.weights)
        like = frozen.record.embed
        self._gradient = like.new_zeros(n, len(frozen.values))
        self._leaves = like.new_zeros(n, frozen.n_leaves)
        self._stream = like.new_zeros(n, frozen.n_pos, like.shape[-1])
        self._beside: Tensor | float = 0.0
        self._add(reading.constant_leaf, reading.constant)
        depth = self._start(reading)
        for place in reversed(_places(len(frozen.weights.layers))):
            if place.depth < depth:
                self._step(place)
        self._add("embedding", (self._stream * like[0]).sum(-1))
        self._add("position", (self._stream * frozen.record.position[0]).sum(-1))

    def done(self) -> Contributions:
        return Contributions(self._gradient, self._leaves)

    def _start(self, reading: Reading) -> int:
        """Carry the reading into the residual stream; everything below that depth follows later."""
        frozen, place = self._frozen, reading.place
        if place is None:
            norm, scale = frozen.weights.ln_final, frozen.record.ln_final_scale[0]
            self._add("bias ln_final", (reading.weights @ norm.bias).sum(-1))
            self._stream = norm.transpose(reading.weights, scale)
            return Place(len(frozen.weights.layers), "residual").depth + 1
        if place.kind == "residual":
            self._stream = reading.weights
        elif place.kind == "heads":
            self._stream = self._heads_input(place.layer, reading.weights)
        elif place.kind == "attention":
            active, at_out = frozen.actives[frozen.at_place[place]], reading.weights
            if not active.before_post:
                at_out = self._before_post(place.layer, at_out)
            self._stream = self._attention_input(place.layer, at_out)
            return Place(place.layer, "heads").depth
        else:
            self._stream = self._mlp_input(place.layer, reading.weights)
            if frozen.weights.layers[place.layer].parallel:
                # It reads the stream before its own block's heads.
                return Place(place.layer, "heads").depth
        return place.depth

    def _step(self, place: Place) -> None:
        number = self._frozen.at_place.get(place)
        if place.kind == "residual":
            if number is not None:
                self._stream = self._dictionary(number, self._stream)
            return
        weights, record = (
            self._frozen.weights.layers[place.layer],
            self._frozen.record.layers[place.layer],
        )
        if place.kind == "mlp":
            if number is None:
                self._add(f"mlp {place.layer}", (self._stream * record.mlp_out[0]).sum(-1))
                return
            at_out = self._stream
            if self._frozen.actives[number].before_post:
                at_out = weights.mlp_post.transpose(at_out, record.mlp_post_scale[0])
            given = self._mlp_input(place.layer, self._dictionary(number, at_out))
            if weights.parallel:
                self._beside = given
            else:
                self._stream = self._stream + given
            return
        given = self._attention_input(place.layer, self._at_attention(place.layer))
        self._stream, self._beside = self._stream + given + self._beside, 0.0

    def _at_attention(self, layer: int) -> Float[Tensor, "target pos d_model"]:
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
        return self._heads_input(layer, at_z)

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
    ) -> Float[Tensor, "target pos d_in"]:
        """Record contributions of latents, error and b_dec; returns the gradient at the input."""
        active = self._frozen.actives[number]
        self._add(f"error {active.name}", (at_out * active.error).sum(-1))
        self._add(f"b_dec {active.name}", (at_out * active.b_dec).sum((-1, -2)))
        gradient = _decoded(active, at_out)
        self._gradient[:, self._frozen.spans[number]] = gradient
        passed = self._gate(gradient, active.codes.values)
        self._add(f"encoder {active.name}", passed @ active.codes.constant)
        at_in = _encoded(active, passed)
        # No latent is on the path past them, so direct effects go there too.
        return at_in if active.skip is None else at_in + active.skip.transpose(at_out)

    def _add(self, leaf: str, contribution: Float[Tensor, "target *pos"]) -> None:
        span = self._frozen.leaves[leaf]
        self._leaves[:, span] += contribution.reshape(len(contribution), -1)


def _decoded(
    active: Active, at_out: Float[Tensor, "target pos d_out"]
) -> Float[Tensor, "target n"]:
    parts = [at_out[:, p] @ active.decoder[span].T for p, span in enumerate(active.at)]
    return torch.cat(parts, dim=1)


def _encoded(active: Active, passed: Float[Tensor, "target n"]) -> Float[Tensor, "target pos d_in"]:
    parts = [passed[:, span] @ active.codes.encoder[span] for span in active.at]
    return torch.stack(parts, dim=1)


def _places(n_layers: int) -> list[Place]:
    """All places of a model, in the order in which it computes them."""
    blocks = [
        Place(layer, kind) for layer in range(n_layers) for kind in ("residual", "heads", "mlp")
    ]
    return [*blocks, Place(n_layers, "residual")]
