"""Checks of input that every variant makes."""

from torch import Tensor

from saelab.config import UsageError


def check_rows(x: Tensor, d_in: int) -> None:
    """Refuse an encoder's input that is not a non-empty, finite `[batch d_in]`.

    Raises:
        UsageError: the shape is wrong, or a value is not finite.
    """
    if x.ndim != 2 or x.shape[1] != d_in or len(x) == 0:
        raise UsageError(
            f"The SAE reads rows of shape [batch, {d_in}], at least one; got {list(x.shape)}."
        )
    if not bool(x.isfinite().all()):
        raise UsageError("The activations hold NaN or infinite values.")


def check_k(k: float | int, d_sae: int) -> None:
    """Refuse a k larger than d_sae.

    Raises:
        UsageError: k exceeds d_sae.
    """
    if k > d_sae:
        raise UsageError(f"k={k} exceeds d_sae={d_sae}; lower --k or widen the SAE with --d-sae.")


def check_widths(given: tuple[int, ...], widths: tuple[int, ...]) -> None:
    """Refuse options that name other widths than those of the sites; none named is no other.

    Raises:
        UsageError: they differ.
    """
    if given not in ((), widths):
        raise UsageError(f"widths={given} are not those of the sites, {widths}; leave it out.")
