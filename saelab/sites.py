"""Hook names: what a TransformerLens name says about its site. No other file takes one apart."""

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from saelab.config import UsageError

Kind = Literal["residual", "heads", "mlp"]
PlaceKind = Literal["residual", "heads", "attention", "mlp"]
"""Points of a block in the order of the computation; `attention` is its output, after W_O."""

_HOOK = re.compile(
    r"(?:blocks\.(0|[1-9][0-9]{0,5})\.)?((?!blocks\.)(?:[A-Za-z0-9_]+\.)*hook_[a-z0-9_]+)"
)
_KINDS: dict[str, Kind] = {
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
BEFORE_GAIN = "ln2.hook_normalized"
"""What an MLP's norm gives before its gain and bias."""
_MLP_IN = ("ln2.hook_out", "mlp.hook_in", BEFORE_GAIN)
_MLP_OUT = ("hook_mlp_out", "mlp.hook_out")
_ATTENTION_OUT = ("hook_attn_out", "attn.hook_out")


JOIN = "+"


def parts_of(site: str) -> tuple[str, ...]:
    """The hooks of a site; several for a joint one, which is written `A+B`.

    Raises:
        UsageError: a name is missing beside a +.
    """
    parts = tuple(site.split(JOIN))
    if len(parts) > 1 and "" in parts:
        raise UsageError(f"In the site {site!r} a name is missing beside a +; write A+B.")
    return parts


class Output(NamedTuple):
    """Two hooks of an attention or MLP: on what it returns, and on what the stream gets of it.

    Between them stand a norm (Gemma 2, OLMo 2), a multiplier (Granite), or nothing.
    """

    returned: str
    added: str


@dataclass(frozen=True)
class Site:
    """A hook name taken apart; `hook` puts it together again.

    Attributes:
        layer: of its block; None: it belongs to no block (`hook_embed`, `unembed.hook_in`).
        part: the rest of the name, e.g. `attn.hook_z`.
    """

    layer: int | None
    part: str

    @classmethod
    def find(cls, hook: str) -> "Site | None":
        """The site of a name such as `blocks.2.hook_resid_post`; None if it is no hook's."""
        found = _HOOK.fullmatch(hook)
        return None if found is None else cls(None if found[1] is None else int(found[1]), found[2])

    @classmethod
    def of(cls, hook: str) -> "Site":
        """The site of a name.

        Raises:
            UsageError: it is no hook's.
        """
        if (found := cls.find(hook)) is None:
            raise UsageError(
                f"{hook!r} is not the name of a hook; blocks.2.hook_resid_post is one, for example."
            )
        return found

    @property
    def hook(self) -> str:
        """The whole name."""
        return self.part if self.layer is None else f"blocks.{self.layer}.{self.part}"

    @property
    def kind(self) -> Kind | None:
        """How a direction reaches the residual stream from here: as it is, through W_O, or W_out.

        None: only through a nonlinearity (queries, keys, norms, ...).
        """
        if self.layer is None:
            return "residual" if self.part in ("hook_embed", "hook_pos_embed") else None
        return _KINDS.get(self.part)

    @property
    def output(self) -> Output | None:
        """The output that a site inside an attention or an MLP writes through; None elsewhere."""
        if self.layer is None:
            return None
        attention, mlp = outputs_of(self.layer)
        if self.part.startswith("attn.") or self.part == "hook_attn_out":
            return attention
        return mlp if self.part.startswith("mlp.") or self.part == "hook_mlp_out" else None

    @property
    def adds(self) -> bool:
        """Whether its block adds its values to the residual stream."""
        outer = self.layer is not None and "." not in self.part
        return outer and self.part.endswith("_out") and self.part != "hook_out"

    @property
    def replaceable(self) -> bool:
        """Whether replacing the value here replaces all that the model reads of it.

        TransformerLens 4 hangs `hook_resid_mid` on the MLP's input: the skip connection goes past
        it, so an edit there would silently change only half of what it seems to.
        """
        return self.layer is None or self.part not in (
            "hook_resid_mid",
            "ln1.hook_in",
            "ln2.hook_in",
        )

    def check_replaceable(self) -> None:
        """Refuse a site that is not `replaceable`.

        Raises:
            UsageError: it is not.
        """
        if not self.replaceable:
            raise UsageError(
                f"{self.hook} can be read but not replaced or differentiated by: the skip "
                "connection goes past it. Use hook_resid_pre, hook_attn_out or hook_resid_post."
            )

    @property
    def next_layer(self) -> int | None:
        """The first layer whose output is computed from what is here; None: it lies behind all."""
        if self.layer is None:
            embeds = self.part.startswith(("hook_embed", "hook_pos_embed", "embed.", "pos_embed."))
            return 0 if embeds else None
        return self.layer + (self.part in ("hook_resid_post", "hook_out"))


def outputs_of(layer: int) -> tuple[Output, Output]:
    """The attention's and the MLP's output of a layer."""
    at = f"blocks.{layer}"
    return (
        Output(f"{at}.attn.hook_out", f"{at}.hook_attn_out"),
        Output(f"{at}.mlp.hook_out", f"{at}.hook_mlp_out"),
    )


@dataclass(frozen=True, order=True)
class Place:
    """A point in a model: the stream before a block, its heads, its attention's output, its MLP.

    Attributes:
        layer: of the block; `residual` of layer n_layers is the stream before the final norm.
    """

    layer: int
    kind: PlaceKind

    @property
    def depth(self) -> int:
        """Places are computed in this order: stream, heads, attention, MLP of block 0, of 1, ..."""
        kinds = get_args(PlaceKind)
        return len(kinds) * self.layer + kinds.index(self.kind)


def place_of(reads: str, writes: str) -> Place | None:
    """Where an SAE stands that reads one hook and writes another, or the same.

    None: attribution knows no exact rule for it. It has one for the residual stream at either end
    of a block, for heads before and after W_O, and for transcoders of one MLP.
    """
    read, written = Site.find(reads), Site.find(writes)
    if read is None or written is None or read.layer is None or read.layer != written.layer:
        return None
    if read.part in _MLP_IN and written.part in _MLP_OUT:
        return Place(read.layer, "mlp")
    if read != written:
        return None
    if read.part == "attn.hook_z":
        return Place(read.layer, "heads")
    if read.part in _ATTENTION_OUT:
        return Place(read.layer, "attention")
    if read.part in ("hook_resid_pre", "hook_resid_post"):
        return Place(read.layer + (read.part == "hook_resid_post"), "residual")
    return None
