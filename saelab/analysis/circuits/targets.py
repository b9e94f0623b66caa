"""What a circuit explains: a logit, a difference of two, or the value of a latent."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.analysis.circuits.frozen import Frozen
from saelab.analysis.circuits.readings import Reading, latent_reading, logit_reading
from saelab.config import UsageError
from saelab.sites import Place


@dataclass(frozen=True)
class Target:
    """A number that the frozen model computes as a linear function of its leaves.

    Attributes:
        label: what it is called.
        reading: the function.
        value: what it is on the prompt, from the activations themselves.
        position: where it is read.
        latent: its index among all active latents, for the target of a local circuit.
        coefficients: of the logits, for the target of a global circuit.
    """

    label: str
    reading: Reading
    value: float
    position: int
    latent: int | None = None
    coefficients: Float[Tensor, " d_vocab"] | None = None


@torch.no_grad()
def logit_target(
    frozen: Frozen, token: int, against: int | None = None, *, position: int | None = None
) -> Target:
    """logit(token) - logit(against), or minus the mean over the vocabulary without `against`.

    The mean does not change any probability, and without it a logit has no zero point.

    Args:
        frozen: the prompt.
        token: id of the token.
        against: id of another.
        position: default: the prompt's last token.

    Raises:
        UsageError: a token is not in the vocabulary, both are the same, or the position does not
            exist.
    """
    d_vocab = frozen.weights.W_U.shape[1]
    for named in (token, against):
        if named is not None and not 0 <= named < d_vocab:
            raise UsageError(f"There is no token {named}; the vocabulary has 0 to {d_vocab - 1}.")
    if token == against:
        raise UsageError("The target and the token it is compared with are the same; give two.")
    place = frozen.n_pos - 1 if position is None else position
    if not 0 <= place < frozen.n_pos:
        raise UsageError(
            f"Position {place} is not in the prompt, which has 0 to {frozen.n_pos - 1}."
        )
    like = frozen.record.embed
    coefficients = torch.full((d_vocab,), -1 / d_vocab, dtype=like.dtype, device=like.device)
    if against is not None:
        coefficients = torch.zeros_like(coefficients)
        coefficients[against] = -1
    coefficients[token] += 1
    reading = logit_reading(frozen, place, coefficients)
    label = f"logit {token} - " + ("mean logit" if against is None else f"logit {against}")
    value = evaluate(frozen, reading)
    return Target(label, reading, value, place, coefficients=coefficients)


@torch.no_grad()
def latent_target(frozen: Frozen, sae: int, latent: int, position: int) -> Target:
    """The value of an active latent; `sae` counts the frozen model's.

    Raises:
        UsageError: the latent does not fire there.
    """
    index = frozen.latent_index(sae, latent, position)
    entry = torch.tensor([index - frozen.spans[sae].start], device=frozen.values.device)
    reading = latent_reading(frozen, sae, entry)
    label = f"{frozen.actives[sae].name} {latent} @{position}"
    return Target(label, reading, evaluate(frozen, reading), position, latent=index)


def evaluate(frozen: Frozen, reading: Reading) -> float:
    """The value of a single reading, from the recorded activations."""
    return float((reading.weights[0] * read_at(frozen, reading.place)).sum() + reading.constant[0])


def read_at(frozen: Frozen, place: Place | None) -> Float[Tensor, "pos d"]:
    """What an SAE at a place reads, as recorded; the final norm's output for None."""
    record, layers = frozen.record, frozen.record.layers
    if place is None:
        return record.final(frozen.weights)[0]
    if place.kind == "residual":
        last = place.layer == len(layers)
        return (record.resid_final if last else layers[place.layer].resid_pre)[0]
    layer = layers[place.layer]
    if place.kind == "attention":
        before_post = frozen.actives[frozen.at_place[place]].before_post
        return (layer.attn_raw if before_post else layer.attn_out)[0]
    return layer.z_cat[0] if place.kind == "heads" else layer.mlp_in[0]


@torch.no_grad()
def next_token_probabilities(frozen: Frozen, position: int = -1) -> Float[Tensor, " d_vocab"]:
    """The model's next-token distribution at a position."""
    return frozen.weights.logits(read_at(frozen, None)[position]).softmax(0)
