"""Functions that TransformerLens calls with a site's value during a forward pass."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from jaxtyping import Float, Int
from torch import Tensor

from saelab.config import UsageError
from saelab.lm.protocol import Edit

Hook = Callable[..., Tensor | None]
"""Called with a value; returns its replacement, or None to keep it."""


class AllCapturedError(Exception):
    """Raised inside the last hook to leave the forward pass there."""


def reader(name: str, tokens: Int[Tensor, "batch pos"], seen: dict[str, Tensor]) -> Hook:
    """A hook that stores the site's value in `seen`, with its graph."""

    def hook_function(value: Tensor, **_: object) -> None:
        seen[name] = per_token(value, tokens, name)

    return hook_function


def captured(
    hooks: Sequence[str],
    tokens: Int[Tensor, "batch pos"],
    forward: Callable[[list[tuple[str, Hook]]], object],
) -> dict[str, Tensor]:
    """What fires of `hooks` when `forward` runs with these functions, the last of which ends it."""
    seen: dict[str, Tensor] = {}

    def keeper(name: str) -> Hook:
        read = reader(name, tokens, seen)

        def hook_function(value: Tensor, **more: object) -> None:
            read(value, **more)
            if len(seen) == len(set(hooks)):
                raise AllCapturedError

        return hook_function

    with suppress(AllCapturedError):
        forward([(name, keeper(name)) for name in dict.fromkeys(hooks)])
    return seen


def replacer(name: str, edit: Edit, tokens: Int[Tensor, "batch pos"], applied: set[str]) -> Hook:
    """A hook that replaces the site's value by `edit` of it, and records that it ran.

    An edit that returns what it was given changes nothing: a model that hears of a replacement may
    compute what follows in another way.
    """

    def hook_function(value: Tensor, **_: object) -> Tensor | None:
        applied.add(name)
        given = per_token(value, tokens, name)
        edited = edit(given)
        return None if edited is given else edited.reshape(value.shape).to(value.dtype)

    return hook_function


def per_token(
    value: Tensor, tokens: Int[Tensor, "batch pos"], name: str
) -> Float[Tensor, "batch pos d_in"]:
    """A site's value with one vector per token, heads flattened head-major.

    Raises:
        UsageError: the site has no vector per token, e.g. attention patterns.
    """
    if value.ndim < 3 or value.shape[:2] != tokens.shape or not value.is_floating_point():
        shape = tuple(value.shape)
        raise UsageError(
            f"{name} has no vector per token: its shape is {shape}, not [batch pos ...]."
        )
    return value.flatten(2)


def check_applied(edits: Mapping[str, Edit], applied: set[str]) -> None:
    """Raises RuntimeError if an edit was never applied: the logits would be the plain model's."""
    if missed := set(edits) - applied:
        raise RuntimeError(f"The edit at {', '.join(sorted(missed))} was never applied.")
