"""What a walk starts from: linear functions of a prompt's activations, such as a logit."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.analysis.circuits.frozen import Frozen
from saelab.lm.linear.paths import soft_capped
from saelab.sites import Place


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
