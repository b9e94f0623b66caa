"""How often latents fire, by Zipf-Mandelbrot's law: budgets, and which latents are under-used."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.kernels.rules import UsageRules
from saelab.kernels.sizes import power_of_two

LOOK_EVERY = 16
"""Steps between two looks at which latents are under-used, or may be dead.

A look waits for the device."""
HALVINGS = 100
"""Bisections of the budgets' common factor; float64 has no more to give."""


@lru_cache(maxsize=8)
def zipf_shares(d_sae: int, exponent: float, shift: float) -> Float[Tensor, " d_sae"]:
    """p_r ~ (r + shift)^-exponent for ranks r = 1, 2, ...; they sum to 1. Float64, on the CPU."""
    ranks = torch.arange(1, d_sae + 1, dtype=torch.float64, device="cpu")
    weight = (ranks + shift).pow(-exponent)
    return weight / weight.sum()


def expected_density(d_sae: int, rules: UsageRules) -> Float[Tensor, " d_sae"]:
    """The share of rows in which the latent of each rank should fire: min(1, k p_r)."""
    shares = zipf_shares(d_sae, rules.exponent, rules.shift)
    return (rules.k * shares).clamp_max(1).float()


@dataclass(frozen=True)
class ColumnBudgets:
    """How many rows of a batch the latent of each rank takes.

    Attributes:
        counts: `[d_sae]`, non-increasing, on the CPU.
        classes: ranks first, stop and the largest budget of ranks whose budgets round up to the
            same power of two; ranks without a budget are in none.
    """

    counts: Int[Tensor, " d_sae"]
    classes: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, counts: Int[Tensor, " d_sae"]) -> "ColumnBudgets":
        """These budgets, which must not increase."""
        numbers = counts.tolist()
        starts = [
            rank
            for rank, n in enumerate(numbers)
            if n and (not rank or power_of_two(n) != power_of_two(numbers[rank - 1]))
        ]
        stops = [*starts[1:], int((counts > 0).sum())]
        return cls(counts, tuple((a, b, numbers[a]) for a, b in zip(starts, stops, strict=True)))


@lru_cache(maxsize=8)
def zipf_budgets(d_sae: int, rules: UsageRules, batch: int) -> ColumnBudgets:
    """Budgets near batch * k * p_r, each from 1 to `batch`, whose sum is int(k * batch).

    The common factor that makes the sum right is found by bisection, and largest remainders are
    rounded up. If the sum is below d_sae, the first ranks have one row each and the others none.
    """
    total = min(int(rules.k * batch), d_sae * batch)
    if total < d_sae:
        return ColumnBudgets.of((torch.arange(d_sae, device="cpu") < total).long())
    shares = zipf_shares(d_sae, rules.exponent, rules.shift)
    low, high = 0.0, float(batch / shares[-1])
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        small = float((middle * shares).clamp(1, batch).sum()) < total
        low, high = (middle, high) if small else (low, middle)
    # Slightly too small rather than too large, so that what is missing is added.
    wanted = (low * shares).clamp(1, batch)
    counts = wanted.floor()
    missing = total - int(counts.sum())
    room = torch.where(counts < batch, wanted - counts, -1.0)
    counts[room.sort(descending=True, stable=True).indices[:missing]] += 1
    return ColumnBudgets.of(counts.long())


@dataclass(frozen=True)
class Usage:
    """How often each latent fires, and which ones fire too seldom.

    Attributes:
        rules: the law, and how densities are averaged.
        density: `[d_sae]`, the share of recent rows in which each latent fired.
        underused: `[d_sae]`, which latents fired too seldom when `mark_` looked last.
    """

    rules: UsageRules
    density: Float[Tensor, " d_sae"]
    underused: Bool[Tensor, " d_sae"]

    def ranked(self) -> Int[Tensor, " d_sae"]:
        """The latents by falling density, equal ones by index."""
        return self.density.sort(descending=True, stable=True).indices

    def mark_(self) -> None:
        """Look which latents are under-used now.

        Their density is below `rules.share` of what is expected of their rank, and of the mean
        density: a latent that fires as often as most is not under-used, whatever its rank.
        """
        density, latents = self.density.sort(descending=True, stable=True)
        expected = expected_density(len(density), self.rules).to(density.device)
        limit = self.rules.share * expected.clamp_max(self.rules.k / len(density))
        self.underused.scatter_(0, latents, density < limit)

    def follow_(
        self, values: Float[Tensor, "*entry"], indices: Int[Tensor, "*entry"], batch: int
    ) -> None:
        """Count the codes of a batch of rows. It never waits for the device."""
        values, indices = values.detach().flatten(), indices.flatten()
        d_sae = len(self.density)
        # Whole numbers, so the order of the sum has no effect. What is zero goes to one place more.
        place = torch.where(values != 0, indices.long(), d_sae)
        ones = self.density.new_ones(1).expand(len(place))
        fired = self.density.new_zeros(d_sae + 1).scatter_add(0, place, ones)
        self.density.lerp_(fired[:d_sae] / batch, min(1.0, batch / self.rules.window))
