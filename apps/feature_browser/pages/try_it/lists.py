"""The latents of a reading as lists: over a prompt, on one token, or of two prompts at once."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from feature_browser.live.prompt import PromptReading

SORTS = ("value", "rarity", "attribution", "latent")
PAIR_SORTS = ("difference", "first", "second", "latent")


@dataclass(frozen=True)
class Found:
    """Each latent that fires, once.

    Attributes:
        value, peak: its firing of the largest |value|, and where that is.
        n: on how many tokens it fires.
        rarity: |value| * -ln(density), density being the share of the corpus it fires on; NaN
            where that is unknown.
        attribution: summed over the tokens.
    """

    latent: Int[ndarray, " latent"]
    value: Float[ndarray, " latent"]
    peak: Int[ndarray, " latent"]
    n: Int[ndarray, " latent"]
    rarity: Float[ndarray, " latent"]
    attribution: Float[ndarray, " latent"]

    def __len__(self) -> int:
        return len(self.latent)


@dataclass(frozen=True)
class Pair:
    """Each latent that fires in one of two prompts: its largest value in either, 0 where silent."""

    latent: Int[ndarray, " latent"]
    first: Float[ndarray, " latent"]
    second: Float[ndarray, " latent"]

    def __len__(self) -> int:
        return len(self.latent)


def found(
    reading: PromptReading, density: Float[ndarray, " d_sae"] | None, at: int | None = None
) -> Found:
    """The latents of a reading, or of its position `at` alone."""
    here = np.ones(len(reading.value), bool) if at is None else reading.position == at
    latent, value = reading.latent[here], reading.value[here]
    by_size = np.lexsort((-np.abs(value), latent))
    distinct, first, n = np.unique(latent[by_size], return_index=True, return_counts=True)
    peak = by_size[first]
    summed = np.zeros(len(distinct))
    np.add.at(summed, np.searchsorted(distinct, latent), reading.attribution[here])
    return Found(
        distinct,
        value[peak],
        reading.position[here][peak],
        n,
        np.abs(value[peak]) * surprise(distinct, density),
        summed,
    )


def surprise(
    latent: Int[ndarray, " latent"], density: Float[ndarray, " d_sae"] | None
) -> Float[ndarray, " latent"]:
    """-ln of each latent's density; what never fired counts as rare as can be told apart."""
    if density is None:
        return np.full(len(latent), np.nan)
    least = density[density > 0].min(initial=1.0) / 2
    return -np.log(np.maximum(density[latent], least))


def order(latents: Found, sort: str) -> Int[ndarray, " latent"]:
    """Rows by value or attribution (both without their sign) or rarity, falling; or by number."""
    if sort == "latent":
        return np.argsort(latents.latent, kind="stable")
    key = {"rarity": latents.rarity, "attribution": latents.attribution}.get(sort, latents.value)
    return np.argsort(-np.nan_to_num(np.abs(key)), kind="stable")


def compare(first: Found, second: Found) -> Pair:
    """The union of both, with both largest values."""
    latent = np.union1d(first.latent, second.latent)
    values = []
    for part in (first, second):
        column = np.zeros(len(latent))
        column[np.searchsorted(latent, part.latent)] = part.value
        values.append(column)
    return Pair(latent, *values)


def order_pair(pair: Pair, sort: str) -> Int[ndarray, " latent"]:
    """Rows by the difference or one prompt's value (without their sign), falling; or by number."""
    if sort == "latent":
        return np.argsort(pair.latent, kind="stable")
    key = {"first": pair.first, "second": pair.second}.get(sort, pair.second - pair.first)
    return np.argsort(-np.abs(key), kind="stable")
