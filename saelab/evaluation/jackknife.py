"""Intervals of figures of documents: what they would be without a group of these documents."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Z = 1.959964
LEAST_GROUPS = 3
"""The fewest groups with anything in them that give an interval."""


def jackknife(
    sums: Float[Tensor, "group *rest"],
    figure: Callable[[Float[Tensor, "*rest"]], Float[Tensor, " n"]],
    counted: Bool[Tensor, "group n"],
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"]]:
    """`figure` of the sums over all groups, and the ends of its 95 % interval.

    The standard error is that of leaving out one group after the other (Tukey's jackknife); the
    interval has Student's quantile for the number of groups that `counted` says have anything in
    them. Ends are NaN with fewer than LEAST_GROUPS of these.
    """
    whole = sums.sum(0)
    value = figure(whole)
    without = torch.stack([figure(whole - part) for part in sums])
    used = counted & without.isfinite()
    n = used.sum(0)
    kept = torch.where(used, without, 0.0)
    mean = kept.sum(0) / n.clamp_min(1)
    squares = torch.where(used, (without - mean).square(), 0.0).sum(0)
    error = (squares * (n - 1) / n.clamp_min(1)).clamp_min(0).sqrt()
    half = torch.where(n >= LEAST_GROUPS, student(n - 1) * error, float("nan"))
    return value, value - half, value + half


def student(freedom: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The 97.5 % quantile of Student's t, to 2 % from 2 degrees of freedom on.

    Cornish and Fisher's expansion (Abramowitz and Stegun, 26.7.5).
    """
    v = freedom.double().clamp_min(1)
    terms = (
        (Z**3 + Z) / 4,
        (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96,
        (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384,
        (79 * Z**9 + 776 * Z**7 + 1482 * Z**5 - 1920 * Z**3 - 945 * Z) / 92160,
    )
    return Z + sum((term / v ** (i + 1) for i, term in enumerate(terms)), torch.zeros_like(v))
