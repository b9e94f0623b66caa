"""Directions compared at the same KL from the plain model, on the prompts of one concept."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.analysis.steering.concepts import ConceptPrompts
from saelab.analysis.steering.edits import direction_edit
from saelab.host.host import Host

FIRST_LENGTH, TRIES, TOLERANCE = 0.5, 12, 0.01
"""Of the search for the length whose KL is the budget."""


@dataclass(frozen=True)
class Steered:
    """What a direction does at the budget.

    Attributes:
        length: of what is added, in units of the activations' root mean square norm.
        kl: the budget, or less where no length reaches it.
        gain: probability of the concept's tokens, steered minus plain, mean over prompts.
    """

    length: float
    kl: float
    gain: float


@dataclass(frozen=True)
class Trial:
    """The prompts of a concept, what the plain model says after them, and the budget."""

    host: Host
    prompts: ConceptPrompts
    base: Float[Tensor, "prompt d_vocab"]
    budget: float
    rms_norm: float

    @classmethod
    @torch.no_grad()
    def of(cls, host: Host, prompts: ConceptPrompts, budget: float, rms_norm: float) -> "Trial":
        """With the plain model run once."""
        base = host.lm.run(prompts.tokens).at(prompts.mask).logits().float().log_softmax(-1)
        return cls(host, prompts, base, budget, rms_norm)

    @property
    def plain_mass(self) -> Float[Tensor, " prompt"]:
        """What the plain model gives the concept's tokens."""
        return self.base.exp()[:, self.prompts.says].sum(dim=1)

    @torch.no_grad()
    def effect(self, direction: Float[Tensor, " d_in"], length: float) -> Steered:
        """What adding `direction` at a length of so many root mean square norms does."""
        mask = self.prompts.mask
        lengths = torch.full((len(mask),), length * self.rms_norm, device=mask.device)
        edit = direction_edit(self.host, direction, lengths, mask)
        out = self.host.lm.run(self.prompts.tokens, edits={self.host.writes: edit})
        found = out.at(mask).logits().float().log_softmax(-1)
        kl = (self.base.exp() * (self.base - found)).sum(dim=1)
        mass = found.exp()[:, self.prompts.says].sum(dim=1)
        return Steered(length, float(kl.mean()), float((mass - self.plain_mass).mean()))

    def at_budget(self, direction: Float[Tensor, " d_in"]) -> Steered:
        """The effect at the length whose KL is the budget."""
        return at_budget(lambda length: self.effect(direction, length), self.budget)

    def ideal_gain(self) -> float:
        """The gain of the best distribution at the budget."""
        plain = self.plain_mass.double()
        return float((ideal_mass(plain, self.budget) - plain).mean())


def at_budget(effect: Callable[[float], Steered], budget: float) -> Steered:
    """The effect at the length whose KL is the budget, within 1 %.

    Where no length reaches it, the effect of the longest that was tried.
    """
    low = high = None
    found = effect(FIRST_LENGTH)
    for _ in range(TRIES):
        if abs(found.kl - budget) <= TOLERANCE * budget:
            break
        low, high = (low, found) if found.kl > budget else (found, high)
        found = effect(_next_length(low, high, budget))
    return found


def _next_length(low: Steered | None, high: Steered | None, budget: float) -> float:
    """A length between those of `low` and `high`, or beyond the one there is."""
    if low is not None and high is not None:
        # KL is near a power of the length; staying off the ends keeps both moving.
        rise = math.log(high.kl / max(low.kl, 1e-30))
        share = min(0.9, max(0.1, math.log(budget / max(low.kl, 1e-30)) / rise))
        return low.length * (high.length / low.length) ** share
    one = low or high
    assert one is not None
    # Small changes have a KL that grows as the length's square.
    factor = math.sqrt(budget / max(one.kl, 1e-30))
    return one.length * (min(4.0, max(1.5, factor)) if high is None else max(0.25, factor / 1.5))


def ideal_mass(plain: Float[Tensor, " prompt"], budget: float) -> Float[Tensor, " prompt"]:
    """The largest mass m of a set of tokens within a KL of `budget` from giving it `plain`.

    The best distribution keeps the proportions inside and outside the set, so its KL is
    c log(c/m) + (1-c) log((1-c)/(1-m)), which grows with m.
    """
    low, high = plain.clone(), torch.ones_like(plain)
    for _ in range(60):
        middle = (low + high) / 2
        kl = torch.xlogy(plain, plain / middle) + (1 - plain) * ((1 - plain) / (1 - middle)).log()
        low, high = torch.where(kl < budget, middle, low), torch.where(kl < budget, high, middle)
    return low
