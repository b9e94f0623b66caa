"""FVU against L0 of several encoders in one dictionary."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.console import progress
from saelab.evaluation.reconstruction import Reconstruction
from saelab.pursuit.encoders import ENCODERS
from saelab.sae.base import AbstractSAE
from saelab.sae.with_encoder import with_encoder

TIMES = (0.25, 0.5, 1.0, 2.0)
"""The L0 of a curve's points, in times that of the SAE's own encoder."""


@dataclass(frozen=True)
class Point:
    """FVU and mean L0 of codes."""

    l0: float
    fvu: float


@dataclass(frozen=True)
class EncoderCurves:
    """How well encoders describe the same rows by the same decoder, at several L0.

    Attributes:
        own: the SAE's own encoder.
        curves: points of each other encoder by falling sparsity; the lower curve has better codes.
        n_rows: rows.
    """

    own: Point
    curves: dict[str, list[Point]]
    n_rows: int


@torch.no_grad()
def encoder_curves(
    sae: AbstractSAE,
    x: Float[Tensor, "row d_in"],
    target: Float[Tensor, "row d_out"] | None = None,
    *,
    encoders: Sequence[str] = ENCODERS,
    l0s: Sequence[float | int] | None = None,
) -> EncoderCurves:
    """FVU against L0 of the SAE's own encoder and of others, on rows that no training saw.

    Args:
        sae: a trained SAE or transcoder with a linear decoder.
        x: rows that it reads, on its device; a few thousand are enough.
        target: rows that a transcoder reconstructs.
        encoders: names of `saelab.pursuit.encoders.ENCODERS`.
        l0s: the L0 of the points; default: 1/4, 1/2, 1 and 2 times that of the SAE's own encoder.

    Raises:
        UsageError: see `saelab.with_encoder`.
    """
    wanted = x if target is None else target

    def point(encoded: AbstractSAE) -> Point:
        codes = encoded.encode_for(x, target)
        sums = Reconstruction(sae.d_out, sae.d_sae, x.device)
        sums.update(wanted, encoded.decode(codes, x), codes)
        found = sums.results()
        return Point(found["l0"], found["fvu"])

    own, curves = point(sae), dict[str, list[Point]]()
    most = min(sae.W_dec.shape)
    goals = [own.l0 * times for times in TIMES] if l0s is None else l0s
    with progress("Encode", len(encoders) * len(goals), "points") as bar:
        for name in encoders:
            curves[name] = []
            for l0 in goals:
                curves[name].append(point(with_encoder(sae, name, x, target, l0=min(l0, most))))
                bar.advance(1, name)
    return EncoderCurves(own, curves, len(x))
