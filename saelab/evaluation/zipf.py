"""The Zipf-Mandelbrot law that fits an SAE's densities (arXiv 2411.02124)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

POINTS = 200
"""Ranks at which law and densities are compared, equally many in each decade of ranks."""
SHIFTS = 400
LEAST = 20
"""Living latents below which no law is fitted."""


@dataclass(frozen=True)
class ZipfFit:
    """The density of the latent of rank r is proportional to (r + shift)^-exponent.

    Attributes:
        r_squared: share of the log densities' variance over log ranks that the law explains.
    """

    exponent: float
    shift: float
    r_squared: float


def fit_zipf(density: Sequence[float]) -> ZipfFit | None:
    """The law with the least squared error of log densities; None for fewer than 20 that are not 0.

    Ranks are sampled evenly on a logarithmic scale, so that the many rare latents do not decide
    alone. For each shift on a grid, from 0.01 to the number of latents, the exponent is that of a
    linear regression. The paper fits such a law to a Mutual Choice SAE; its method is not known to
    us.
    """
    alive = torch.tensor([d for d in density if d > 0], dtype=torch.float64)
    if len(alive) < LEAST:
        return None
    alive = alive.sort(descending=True).values
    ranks = torch.logspace(0, torch.tensor(float(len(alive))).log10().item(), POINTS).round()
    ranks = ranks.clamp(1, len(alive)).unique().double()
    y = alive[ranks.long() - 1].log()
    y = y - y.mean()
    shifts = torch.logspace(-2, torch.tensor(float(len(alive))).log10().item(), SHIFTS)
    shifts = torch.cat([torch.zeros(1), shifts]).double()
    x = (ranks + shifts[:, None]).log()
    x = x - x.mean(dim=1, keepdim=True)
    slope = (x @ y) / x.square().sum(1)
    error = (y - slope[:, None] * x).square().sum(1)
    best = int(error.argmin())
    variance = float(y.square().sum())
    explained = 1 - float(error[best]) / variance if variance else 1.0
    return ZipfFit(-float(slope[best]), float(shifts[best]), explained)
