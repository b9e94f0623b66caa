"""Which latents tell some texts from others, by how strongly each fires in each text."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from saelab.config import UsageError

LEAST = 2
"""Texts of a side: one alone is told apart by anything."""
SHUFFLES = 200
CELLS_AT_ONCE = 2**24
"""Comparisons of two texts by a latent that are in memory at a time."""
LEVEL = 0.95
Fired = tuple[Int[ndarray, " fired"], Float[ndarray, " fired"]]
"""The latents that fire in a text, and the largest |activation| of each."""


@dataclass(frozen=True)
class Contrast:
    """How well each latent that fires in some text tells the first texts from the second.

    Attributes:
        latent: those latents, the best first.
        auroc: the chance that a first text's largest activation exceeds a second's, ties counted
            half: 1 if the latent fires more in every first text, 0 if in every second, 0.5 if it
            says nothing.
        first, second: mean over the texts of each side of the largest |activation|; 0 where silent.
        n_first, n_second: texts of each side in which it fires.
        chance: |auroc - 0.5| that the best latent exceeds in one of twenty shuffles of the texts.
            Below it, a latent may have been found by chance among so many.
    """

    latent: Int[ndarray, " latent"]
    auroc: Float[ndarray, " latent"]
    first: Float[ndarray, " latent"]
    second: Float[ndarray, " latent"]
    n_first: Int[ndarray, " latent"]
    n_second: Int[ndarray, " latent"]
    chance: float

    def __len__(self) -> int:
        return len(self.latent)


def contrast(texts: Sequence[Fired], is_first: Bool[ndarray, " text"], seed: int = 0) -> Contrast:
    """The latents of texts that were read, compared between those that are first and the others.

    Raises:
        UsageError: a side has fewer than two texts.
    """
    check_sides(int(is_first.sum()), int((~is_first).sum()))
    every = np.unique(np.concatenate([latents for latents, _ in texts]))
    draw = np.random.default_rng(seed)
    shuffled = np.stack([draw.permutation(is_first) for _ in range(SHUFFLES)])
    labels = np.concatenate([is_first[None], shuffled]).astype(np.float64)
    parts, best = [], np.zeros(SHUFFLES)
    at_once = max(1, CELLS_AT_ONCE // len(texts) ** 2)
    for start in range(0, len(every), at_once):
        own = every[start : start + at_once]
        values = _dense(texts, own)
        found = _aurocs(values, labels)
        best = np.maximum(best, np.abs(found[1:] - 0.5).max(axis=1))
        sums = (values[is_first], values[~is_first])
        parts.append((found[0], *(s.mean(0) for s in sums), *((s > 0).sum(0) for s in sums)))
    if not parts:
        nothing = np.zeros(0)
        whole = nothing.astype(np.int64)
        return Contrast(whole, nothing, nothing, nothing, whole, whole, 0.0)
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.lexsort((every, -np.abs(columns[0] - 0.5)))
    auroc, first, second, n_first, n_second = (column[order] for column in columns)
    chance = float(np.quantile(best, LEVEL))
    return Contrast(every[order], auroc, first, second, n_first, n_second, chance)


def check_sides(n_first: int, n_second: int) -> None:
    """Refuse sides of fewer than two texts, before they are read; raises UsageError."""
    if min(n_first, n_second) < LEAST:
        raise UsageError(
            f"Got {n_first} and {n_second} texts; give at least {LEAST} on each side, one a line."
        )


def _dense(texts: Sequence[Fired], own: Int[ndarray, " latent"]) -> Float[ndarray, "text latent"]:
    values = np.zeros((len(texts), len(own)))
    for row, (latents, fired) in enumerate(texts):
        kept = np.isin(latents, own)
        values[row, np.searchsorted(own, latents[kept])] = np.abs(fired[kept])
    return values


def _aurocs(
    values: Float[ndarray, "text latent"], labels: Float[ndarray, "split text"]
) -> Float[ndarray, "split latent"]:
    """Mann-Whitney's U over the number of pairs, for every split of the texts."""
    smaller = (values[:, None] < values[None]).sum(axis=0)
    not_larger = (values[:, None] <= values[None]).sum(axis=0)
    n = labels.sum(axis=1, keepdims=True)
    u = labels @ ((smaller + not_larger + 1) / 2) - n * (n + 1) / 2
    return u / (n * (labels.shape[1] - n))


def largest(latent: Int[ndarray, " firing"], value: Float[ndarray, " firing"]) -> Fired:
    """Each latent of a text once, with its largest |activation|."""
    by_size = np.lexsort((-np.abs(value), latent))
    distinct, first = np.unique(latent[by_size], return_index=True)
    return distinct, np.abs(value[by_size[first]])
