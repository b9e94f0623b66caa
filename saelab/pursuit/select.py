"""Selection rules: from pre-activations to the few latents that a row keeps."""

from collections.abc import Callable

from jaxtyping import Bool, Float
from torch import Tensor

from saelab.types import SparseCodes

Rule = Callable[[Tensor, int], SparseCodes]


def top_k(pre_acts: Float[Tensor, "batch d_sae"], k: int) -> SparseCodes:
    """The k largest pre-activations of each row, rectified (arXiv 2406.04093, eq. 3).

    A row with fewer than k positive pre-activations keeps zeros, which do not fire. Entries are
    sorted by falling value, so the first j of them are the codes for a budget of j.
    """
    values, indices = pre_acts.topk(k, dim=-1)
    return SparseCodes(values.relu(), indices, pre_acts.shape[-1])


def abs_top_k(pre_acts: Float[Tensor, "batch d_sae"], k: int) -> SparseCodes:
    """The k entries of largest magnitude in each row, signs kept (arXiv 2510.00404).

    This is the Euclidean projection of the row onto the vectors with at most k non-zeros.
    """
    indices = pre_acts.abs().topk(k, dim=-1).indices
    return SparseCodes(pre_acts.gather(-1, indices), indices, pre_acts.shape[-1])


def top_k_among(
    pre_acts: Float[Tensor, "batch d_sae"], allowed: Bool[Tensor, " d_sae"], k: int
) -> SparseCodes:
    """`top_k` restricted to the latents in `allowed`; k is cut to how many there are."""
    return _among(top_k, pre_acts, allowed, k)


def abs_top_k_among(
    pre_acts: Float[Tensor, "batch d_sae"], allowed: Bool[Tensor, " d_sae"], k: int
) -> SparseCodes:
    """`abs_top_k` restricted to the latents in `allowed`; k is cut to how many there are."""
    return _among(abs_top_k, pre_acts, allowed, k)


def _among(rule: Rule, pre_acts: Tensor, allowed: Tensor, k: int) -> SparseCodes:
    # Only the allowed columns are read, so a few dead latents cost little.
    candidates = allowed.nonzero().squeeze(1)
    among = rule(pre_acts[:, candidates], min(k, len(candidates)))
    return SparseCodes(among.values, candidates[among.indices], pre_acts.shape[-1])
