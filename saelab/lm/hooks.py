"""What TransformerLens calls with a site's value on its way through the model."""

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor

from saelab.config import UsageError
from saelab.lm.protocol import Edit

Hook = Callable[..., Tensor | None]
"""Called with a value; returns what takes its place, or None to leave it."""


class AllCapturedError(Exception):
    """Raised inside the last hook to leave the forward pass there."""


def reader(name: str, tokens: Int[Tensor, "batch pos"], seen: dict[str, Tensor]) -> Hook:
    """A hook that puts the site's value into `seen`, graph included."""

    def hook_function(value: Tensor, **_: object) -> None:
        seen[name] = per_token(value, tokens, name)

    return hook_function


def replacer(name: str, edit: Edit, tokens: Int[Tensor, "batch pos"], applied: set[str]) -> Hook:
    """A hook that puts `edit` of the site's value in its place and notes that it did."""

    def hook_function(value: Tensor, **_: object) -> Tensor:
        applied.add(name)
        return edit(per_token(value, tokens, name)).reshape(value.shape).to(value.dtype)

    return hook_function


def per_token(
    value: Tensor, tokens: Int[Tensor, "batch pos"], name: str
) -> Float[Tensor, "batch pos d_in"]:
    """A site's value with one vector per token, heads flattened head-major.

    Raises:
        UsageError: the site has none, such as attention patterns.
    """
    if value.ndim < 3 or value.shape[:2] != tokens.shape or not value.is_floating_point():
        shape = tuple(value.shape)
        raise UsageError(
            f"{name} has no vector per token: its shape is {shape}, not [batch pos ...]."
        )
    return value.flatten(2)
