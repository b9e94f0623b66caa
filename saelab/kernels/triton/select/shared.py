"""The exact selection over several processes' latents, from each process's own candidates.

Each process chooses the n largest of its own latents' entries, among which are all that it has of
the n largest of all. It tells the others one integer for each: the entry's size, and behind it,
reversed, its place. The n-th largest of all these integers is the limit, so of entries that are
stored equal, the first one wins: in a row the lowest latent, in a batch the first row.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

NOTHING = -1
"""Below the key of every entry."""


def selection_keys(
    sizes: Float[Tensor, "*entry"], places: Int[Tensor, "*entry"], dtype: torch.dtype
) -> Int[Tensor, "*entry"]:
    """Integers that sort by falling place where sizes are equal, else by size.

    Args:
        sizes: what entries are ranked by, at least 0.
        places: the order of entries of equal size; below `most_places(dtype)`.
        dtype: of the stored entries; numbers that bfloat16 can hold need fewer bits.
    """
    bits = (sizes.float() + 0.0).view(torch.int32).long()
    shift = _shift(dtype)
    return ((bits >> (48 - 32 if shift == 48 else 0)) << shift) + (most_places(dtype) - 1 - places)


def sizes_of(keys: Int[Tensor, "*entry"], dtype: torch.dtype) -> Float[Tensor, "*entry"]:
    """The sizes in the keys of entries; 0 where there is none."""
    shift = _shift(dtype)
    bits = (keys.clamp_min(0) >> shift) << (16 if shift == 48 else 0)
    return bits.int().view(torch.float32)


def most_places(dtype: torch.dtype) -> int:
    """How many places can be told apart."""
    return 1 << _shift(dtype)


def limit_of_rows(every: Int[Tensor, "process batch own"], k: int) -> Int[Tensor, "batch 1"]:
    """The k-th largest key of each row."""
    rows = every.movedim(0, 1).flatten(1)
    return rows.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)


def limit_of_all(every: Int[Tensor, "process own"], n: int) -> Int[Tensor, ""]:
    """The n-th largest key."""
    return every.flatten().topk(n, sorted=False).values.amin()


def _shift(dtype: torch.dtype) -> int:
    # The sign of a size is 0, and the lower half of a bfloat16's bits.
    return 48 if dtype == torch.bfloat16 else 32
