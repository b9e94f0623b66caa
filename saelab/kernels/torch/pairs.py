"""The (token, latent) pairs of a batch of codes sorted by latent: any device, no atomics."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

SLICE = 256
"""Pairs in one slice of work; a latent with more is split."""


@dataclass(frozen=True)
class LatentPairs:
    """The pairs of each latent.

    Attributes:
        order: `[pair]`, positions in the flattened codes, sorted by latent and then by position.
        offsets: `[d_sae + 1]`, int32; latent j has `order[offsets[j]:offsets[j + 1]]`.
        both: `[2 d_sae + 1]`, the same for codes that may be off. Codes that are off come after all
            others; those of latent j are at `both[d_sae + j : d_sae + j + 2]`.
        rows: `[pair]`, the row of errors of each pair of `order`, where rows differ in length.
    """

    order: Int[Tensor, " pair"]
    offsets: Int[Tensor, " d_sae_1"]
    both: Int[Tensor, " two_d_sae_1"] | None = None
    rows: Int[Tensor, " pair"] | None = None

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return len(self.offsets) - 1

    def capacity(self, size: int, above: int) -> int:
        """Room for the slices of all latents with more than `above` pairs, whichever they are."""
        # Full slices, and one that is not full of each latent that has slices.
        with_slices = min(self.d_sae, len(self.order) // (above + 1))
        return max(1, len(self.order) // size + with_slices)


@dataclass(frozen=True)
class Slices:
    """The slices of the latents that have more than so many pairs, at most `size`.

    Attributes:
        size: largest number of pairs in a slice.
        first: `[d_sae + 1]`, int32; latent j has the slices `first[j]` to `first[j + 1]`, none if
            it is not split.
        latent: `[capacity]`, int32, the latent of each slice; undefined beyond `first[-1]`.
    """

    size: int
    first: Int[Tensor, " d_sae_1"]
    latent: Int[Tensor, " capacity"]


def sort_key(d_sae: int) -> tuple[int, torch.dtype]:
    """What is subtracted from a latent, and the type of the difference, which is sorted.

    The time of a radix sort grows with the bits of a key: 16 are enough for most dictionaries.
    """
    return (2**15, torch.int16) if d_sae <= 2**16 else (0, torch.int32)


def pairs_by_latent(indices: Int[Tensor, "*entry"], d_sae: int) -> LatentPairs:
    """The pairs of codes by latent; the sort is stable, so two calls are bit-equal.

    It never waits for the device, so it can be part of a CUDA graph.
    """
    shift, dtype = sort_key(d_sae)
    keys, order = torch.sort((indices.flatten() - shift).to(dtype), stable=True)
    latents = torch.arange(d_sae, device=indices.device, dtype=torch.int32)
    offsets = torch.full((d_sae + 1,), len(keys), dtype=torch.int32, device=indices.device)
    starts = torch.searchsorted(keys, (latents - shift).to(dtype), out_int32=True)
    offsets[:-1] = starts
    return LatentPairs(order, offsets)


def heavy_slices(pairs: LatentPairs, size: int = SLICE, above: int | None = None) -> Slices:
    """Slices of at most `size` pairs for every latent with more than `above`; default: `size`.

    Their capacity is static.
    """
    above = size if above is None else above
    counts = pairs.offsets.diff()
    n = torch.where(counts > above, (counts + size - 1) // size, 0)
    first = torch.zeros_like(pairs.offsets)
    first[1:] = n.cumsum(0)
    pieces = torch.arange(pairs.capacity(size, above), device=first.device, dtype=first.dtype)
    latent = torch.searchsorted(first, pieces, right=True, out_int32=True) - 1
    return Slices(size, first, latent.to(torch.int32))
