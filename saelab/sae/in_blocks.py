"""Selection among the latents of a wide SAE, block by block, with the result of all at once.

A million latents' pre-activations of a batch would take gigabytes. The largest of all latents are
among the largest of each block, so it is enough to keep these.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from saelab.config import UsageError
from saelab.pursuit.select import above, top_k
from saelab.sae.affine import AffineEncoder
from saelab.types import SparseCodes

if TYPE_CHECKING:
    from saelab.sae.base import AbstractSAE

AT_ONCE = {"cpu": 2**24, "cuda": 2**30}
"""Most pre-activations at once; more take memory and no less time."""
LEAST_LATENTS = 4096
"""Fewest latents in a block; a larger batch is divided by rows as well."""
Rule = Callable[[Tensor, slice], SparseCodes]
"""From the pre-activations of some latents to their codes, the largest first."""


def numbers_at_once(device: torch.device) -> int:
    """Most pre-activations that are in memory at once on this device."""
    return AT_ONCE.get(device.type, AT_ONCE["cpu"])


def largest_of_all(
    encoder: AffineEncoder,
    x: Float[Tensor, "batch d_in"],
    k: int,
    rule: Callable[[Tensor, int], SparseCodes] = top_k,
) -> SparseCodes:
    """The codes that `rule` keeps with k per row, among all latents.

    Raises:
        UsageError: a pre-activation is not finite.
    """
    return _chosen(encoder, x, lambda a, _: rule(a, min(k, a.shape[1])), k)


def above_of_all(
    encoder: AffineEncoder,
    x: Float[Tensor, "batch d_in"],
    threshold: Float[Tensor, "*d_sae"],
    *,
    signed: bool = False,
) -> SparseCodes:
    """The latents above their threshold, as `above` gives them, among all latents.

    Raises:
        UsageError: a pre-activation is not finite.
    """

    def rule(pre_acts: Tensor, latents: slice) -> SparseCodes:
        own = threshold[latents] if threshold.ndim else threshold
        return above(pre_acts, own, signed=signed)

    return _chosen(encoder, x, rule, None)


@runtime_checkable
class SelectingAlone(Protocol):
    """An SAE in which a latent's own pre-activation says whether it fires."""

    def encode_some(
        self, x: Float[Tensor, "batch d_in"], latents: Int[Tensor, " some"]
    ) -> SparseCodes:
        """The codes of some latents, numbered from 0 in this order; others are not computed."""
        ...


def codes_of(
    sae: "AbstractSAE", x: Float[Tensor, "batch d_in"], latents: Int[Tensor, " some"]
) -> SparseCodes:
    """The codes of some latents alone, numbered from 0 in this order, as `sae.encode` gives them.

    It costs as little as these latents where each fires by its own threshold, and as much as all
    where they compete.
    """
    # pyrefly: ignore[unsafe-overlap]
    if isinstance(sae, SelectingAlone) and sae.affine_encoder() is not None:
        return sae.encode_some(x, latents)
    codes = sae.encode(x)
    place = torch.full((codes.d_sae,), -1, device=latents.device)
    place[latents] = torch.arange(len(latents), device=latents.device)
    found = codes.where(place[codes.indices] >= 0)
    return replace(found, indices=place[found.indices], d_sae=len(latents))


def above_alone(
    encoder: AffineEncoder | None,
    x: Float[Tensor, "batch d_in"],
    latents: Int[Tensor, " some"],
    threshold: Float[Tensor, "*d_sae"],
    *,
    signed: bool = False,
) -> SparseCodes:
    """As `above_of_all`, of some latents alone, numbered from 0."""
    assert encoder is not None
    own = threshold[latents] if threshold.ndim else threshold
    return above(encoder.pre_activations(x, latents), own, signed=signed)


def _chosen(encoder: AffineEncoder, x: Tensor, rule: Rule, most: int | None) -> SparseCodes:
    d_sae, numbers = len(encoder.b_enc), numbers_at_once(x.device)
    if len(x) * d_sae <= numbers:
        return rule(encoder.pre_activations(x), slice(0, d_sae))
    rows = max(1, numbers // min(d_sae, LEAST_LATENTS))
    return _joined([_of_rows(encoder, part, rule, most) for part in x.split(rows)])


def _of_rows(encoder: AffineEncoder, x: Tensor, rule: Rule, most: int | None) -> SparseCodes:
    d_sae = len(encoder.b_enc)
    width, kept = max(1, numbers_at_once(x.device) // len(x)), None
    for first in range(0, d_sae, width):
        latents = slice(first, min(first + width, d_sae))
        pre_acts = encoder.pre_activations(x, latents)
        # A sum is not finite if a number is not, and needs no memory.
        if not bool(pre_acts.sum(dtype=torch.float64).isfinite()):
            raise UsageError(
                "A latent's pre-activation is NaN or infinite, so a weight is; `saelab verify` "
                "says whether the file is damaged."
            )
        found = rule(pre_acts, latents)
        found = SparseCodes(found.values, found.indices + first, d_sae)
        kept = found if kept is None else _merged(kept, found, most)
    assert kept is not None
    return kept


def _merged(kept: SparseCodes, found: SparseCodes, most: int | None) -> SparseCodes:
    """The largest entries of both; of equal ones, those of lower latents."""
    values = torch.cat([kept.values, found.values], dim=1)
    indices = torch.cat([kept.indices, found.indices], dim=1)
    order = values.abs().sort(dim=1, descending=True, stable=True).indices
    if most is None:
        most = int((values != 0).sum(dim=1).max())
    order = order[:, :most]
    return SparseCodes(values.gather(1, order), indices.gather(1, order), kept.d_sae)


def _joined(parts: list[SparseCodes]) -> SparseCodes:
    """The rows of all parts, padded with entries that do not fire."""
    if len(parts) == 1:
        return parts[0]
    width = max(part.values.shape[1] for part in parts)
    values, indices = (
        torch.cat([F.pad(getattr(p, name), (0, width - p.values.shape[1])) for p in parts])
        for name in ("values", "indices")
    )
    return replace(parts[0], values=values, indices=indices)
