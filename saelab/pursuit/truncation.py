"""Which few latents are on in a row, as a posterior over a small set of likely states.

Expectation truncation (Luecke and Eggert, JMLR 11, 2010; the toolkit of arXiv 1908.06843) keeps of
all states of the latents: the one in which all are off, those in which one is on, and those in
which two to `max_active` of a row's `candidates` latents are. The posterior is exact within the
set. With as many candidates as latents, all of which may be on, the set holds every state.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.types import SparseCodes


def n_states(candidates: int, max_active: int, n_signs: int = 1) -> int:
    """The number of states in which two or more candidates are on."""
    sizes = range(2, max_active + 1)
    return sum(math.comb(candidates, size) * n_signs**size for size in sizes)


@dataclass(frozen=True)
class States:
    """The states in which two or more of a row's candidates are on.

    Attributes:
        n_candidates: candidates of a row.
        places: `[slot state]`, which candidates are on; 0 in unused slots.
        signs: `[slot state]`, the sign of each; 0 in unused slots.
        each: the signs that a latent which is on may have.
    """

    n_candidates: int
    places: Int[Tensor, "slot state"]
    signs: Float[Tensor, "slot state"]
    each: tuple[int, ...]

    @classmethod
    def of(cls, candidates: int, max_active: int, signs: tuple[int, ...], like: Tensor) -> "States":
        """All of them; each latent that is on has each of `signs`. On the device of `like`."""
        places, given = [], []
        for size in range(2, max_active + 1):
            unused = (0,) * (max_active - size)
            for which in combinations(range(candidates), size):
                for each in product(signs, repeat=size):
                    places.append(which + unused)
                    given.append(each + unused)
        shape = (len(places), max_active)
        return cls(
            candidates,
            torch.tensor(places, dtype=torch.long, device=like.device).view(shape).T.contiguous(),
            torch.tensor(given, dtype=like.dtype, device=like.device).view(shape).T.contiguous(),
            signs,
        )

    def __len__(self) -> int:
        """States."""
        return self.places.shape[1]

    @cached_property
    def used(self) -> Float[Tensor, "slot state"]:
        """1 in used slots, 0 in unused ones."""
        return self.signs.abs()

    @cached_property
    def slots(self) -> Float[Tensor, "candidate slot state"]:
        """1 where the slot holds the candidate."""
        numbers = torch.arange(self.n_candidates, device=self.places.device)
        return (numbers[:, None, None] == self.places) * self.used

    @cached_property
    def on(self) -> Float[Tensor, "candidate state"]:
        """1 where the candidate is on."""
        return self.slots.sum(1)

    @cached_property
    def signed(self) -> Float[Tensor, "candidate state"]:
        """The sign of each candidate, 0 if it is off."""
        return (self.slots * self.signs).sum(1)

    @cached_property
    def pairs(self) -> Float[Tensor, "pair state"]:
        """The products of two candidates' signs."""
        return (self.signed[:, None] * self.signed).flatten(0, 1)

    @cached_property
    def slot_pairs(self) -> Float[Tensor, "pair slots_state"]:
        """1 where two slots of a state hold these two candidates."""
        return torch.einsum("ias,jbs->ijabs", self.slots, self.slots).flatten(0, 1).flatten(1)


@dataclass(frozen=True)
class Evidence:
    """How well the states explain some rows; logarithms, relative to the state with nothing on.

    Attributes:
        states: the states with two or more candidates on.
        candidates: `[row candidate]`, the latents among which these choose.
        one: `[row sign latent]`, log-likelihood with one latent on.
        several: `[row state]`, log-likelihood of `states`.
        value: `[row sign latent]`, the mean of the latent's value where it alone is on.
        variance: `[latent]`, its variance there.
        values: `[slot state row]`, the same means in `states`; 0 in unused slots.
        covariance: `[slot slot state row]`, their covariance; None if values are fixed.
    """

    states: States
    candidates: Int[Tensor, "row candidate"]
    one: Float[Tensor, "row sign latent"]
    several: Float[Tensor, "row state"]
    value: Float[Tensor, "#row sign #latent"]
    variance: Float[Tensor, " #latent"]
    values: Float[Tensor, "slot state #row"]
    covariance: Float[Tensor, "slot slot state row"] | None = None

    def log_prior(self, log_odds: Float[Tensor, " latent"]) -> Float[Tensor, "row all"]:
        """Log prior of every state, given each latent's log odds to be on with any sign."""
        n_rows, n_signs, _ = self.one.shape
        one = log_odds - math.log(n_signs)
        ones = one.expand_as(self.one).flatten(1)
        return torch.cat([one.new_zeros(n_rows, 1), ones, one[self.candidates] @ self.states.on], 1)

    def log_likelihood(self) -> Float[Tensor, "row all"]:
        """Log-likelihood of every state: nothing on, one latent on, several."""
        nothing = self.one.new_zeros(len(self.one), 1)
        return torch.cat([nothing, self.one.flatten(1), self.several], dim=1)

    def sizes(self) -> Float[Tensor, " all"]:
        """How many latents are on in every state."""
        nothing, ones = self.one.new_zeros(1), self.one.new_ones(self.one[0].numel())
        return torch.cat([nothing, ones, self.states.used.sum(0)])

    def moments(self, posterior: Float[Tensor, "row all"]) -> "StateMoments":
        """The moments of the latents' values, 0 if off, under weights of the states."""
        n, states = self.one[0].numel(), self.states
        one = posterior[:, 1 : n + 1].view(self.one.shape)
        several = posterior[:, n + 1 :]
        squares = (one * (self.value.square() + self.variance)).sum((0, 1))
        on, mean = one.sum(1), (one * self.value).sum(1)
        if self.covariance is None:
            found, products = several @ states.signed.T, several @ states.pairs.T
        else:
            weighted = several.T * self.values
            second = several.T * self.covariance + weighted[:, None] * self.values
            found = (states.slots.flatten(1) @ weighted.flatten(0, 1)).T
            products = (states.slot_pairs @ second.flatten(0, 2)).T
        return StateMoments(
            on.scatter_add(1, self.candidates, several @ states.on.T),
            mean.scatter_add(1, self.candidates, found),
            squares,
            products.view(-1, states.n_candidates, states.n_candidates),
        )

    def best(self, log_joint: Float[Tensor, "row all"]) -> SparseCodes:
        """Each row's most probable state, with the means of its latents' values."""
        d_sae, n = self.one.shape[-1], self.one[0].numel()
        best, (slots, n_several) = log_joint.argmax(dim=1), self.states.places.shape
        rows, number = len(best), torch.arange(len(best), device=best.device)
        indices, values = best.new_zeros(rows, slots), self.one.new_zeros(rows, slots)
        alone = (best - 1).clamp(0, n - 1)
        indices[:, 0] = alone % d_sae
        values[:, 0] = self.value.expand_as(self.one).flatten(1)[number, alone]
        if n_several:
            state, several = (best - 1 - n).clamp_min(0), (best > n)[:, None]
            chosen = self.candidates.gather(1, self.states.places[:, state].T)
            found = self.values.expand(-1, -1, rows)[:, state, number].T
            indices = torch.where(several, chosen, indices)
            values = torch.where(several, found, values)
        values = torch.where((best > 0)[:, None], values, 0.0)
        return SparseCodes(values, torch.where(values != 0, indices, 0), d_sae)


@dataclass(frozen=True)
class StateMoments:
    """StateMoments under a posterior of some rows.

    Attributes:
        on: P(on).
        mean: E[z], the value being 0 if the latent is off.
        squares: E[z^2] over the states in which one latent is on, summed over the rows.
        products: E[z z^T] of the candidates over the states in which several are on.
    """

    on: Float[Tensor, "row latent"]
    mean: Float[Tensor, "row latent"]
    squares: Float[Tensor, " latent"]
    products: Float[Tensor, "row candidate candidate"]
