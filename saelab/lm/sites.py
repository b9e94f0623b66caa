"""What a TransformerLens hook name says about its site."""

import difflib
import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

from saelab.config import UsageError

Path = Literal["residual", "heads", "mlp"]

_LAYER = re.compile(r"^blocks\.(\d+)\.")
_WRITES = {
    "hook_resid_pre": "residual",
    "hook_resid_mid": "residual",
    "hook_resid_post": "residual",
    "hook_in": "residual",
    "hook_out": "residual",
    "hook_attn_out": "residual",
    "hook_mlp_out": "residual",
    "mlp.hook_out": "residual",
    "attn.hook_out": "residual",
    "attn.hook_z": "heads",
    "attn.o.hook_in": "heads",
    "mlp.hook_post": "mlp",
    "mlp.out.hook_in": "mlp",
}


def layer_of(hook: str) -> int:
    """The layer in a name such as `blocks.2.hook_resid_post`.

    Raises:
        ValueError: the hook belongs to no block.
    """
    match = _LAYER.match(hook)
    if match is None:
        raise ValueError(f"{hook} belongs to no block.")
    return int(match.group(1))


def direct_path(hook: str) -> Path | None:
    """How a direction at `hook` reaches the residual stream: as it is, through W_O, or W_out.

    None for sites that reach it only through a nonlinearity (queries, keys, norms, ...).
    """
    if hook in ("hook_embed", "hook_pos_embed"):
        return "residual"
    match = _LAYER.match(hook)
    return None if match is None else _WRITES.get(hook[match.end() :])  # pyright: ignore[reportReturnType]


class Output(NamedTuple):
    """Two hooks of an attention or MLP: on what it returns, and on what the stream gets of it.

    Between them stand a norm (Gemma 2, OLMo 2), a multiplier (Granite), or nothing.
    """

    returned: str
    added: str


def outputs_of(layer: int) -> tuple[Output, Output]:
    """The attention's and the MLP's of a layer."""
    at = f"blocks.{layer}"
    return (
        Output(f"{at}.attn.hook_out", f"{at}.hook_attn_out"),
        Output(f"{at}.mlp.hook_out", f"{at}.hook_mlp_out"),
    )


def output_of(hook: str) -> Output | None:
    """The output that a site inside an attention or an MLP writes through; None elsewhere."""
    match = _LAYER.match(hook)
    if match is None:
        return None
    attention, mlp = outputs_of(int(match.group(1)))
    part = hook[match.end() :]
    if part.startswith("attn.") or part == "hook_attn_out":
        return attention
    return mlp if part.startswith("mlp.") or part == "hook_mlp_out" else None


def replaceable(hook: str) -> bool:
    """Whether replacing the value at `hook` replaces all that the model reads of it.

    TransformerLens 4 hangs `hook_resid_mid` on the MLP's input: the skip connection goes past it,
    so an edit there would silently change only half of what it seems to.
    """
    return not hook.endswith((".hook_resid_mid", ".ln2.hook_in", ".ln1.hook_in"))


def check_replaceable(hook: str) -> None:
    """Refuse a hook that is not `replaceable`.

    Raises:
        UsageError: it is not.
    """
    if not replaceable(hook):
        raise UsageError(
            f"{hook} can be read but not replaced or differentiated by: the skip connection goes "
            "past it. Use hook_resid_pre, hook_attn_out or hook_resid_post."
        )


def nearest(name: str, names: Iterable[str], n: int = 3) -> list[str]:
    """The `n` of `names` that look most like `name`."""
    candidates = list(names)
    return difflib.get_close_matches(name, candidates, n, cutoff=0.0)
