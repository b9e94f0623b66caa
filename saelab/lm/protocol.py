"""The protocol of a language model: the few methods by which saelab uses any model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.config import Config
from saelab.lm.predictions import Predictions, Unembed
from saelab.lm.token_table import TokenTable

Edit = Callable[[Tensor], Tensor]
"""Maps a site's activations `[batch pos d_in]` to their replacement, of the same shape."""


@dataclass(frozen=True)
class ModelOutput:
    """Result of one forward pass.

    Logits of all positions are large and seldom needed, so they are made on demand.

    Attributes:
        hidden: the unembedding's input; if `unembed` is None, the logits.
        activations: the activations at each hook asked for, after the hook's edit if it has one.
        unembed: maps rows of `hidden` to their logits.
        d_vocab: number of logits per position; default: the width of `hidden`.
    """

    hidden: Float[Tensor, "batch pos _"]
    activations: dict[str, Float[Tensor, "batch pos d_in"]]
    unembed: Unembed | None = None
    d_vocab: int | None = None

    @property
    def logits(self) -> Float[Tensor, "batch pos d_vocab"]:
        """Next-token logits of all positions at once."""
        return self.at(...).logits().unflatten(0, self.hidden.shape[:2])

    def behind(self, position: int = -1) -> Predictions:
        """The predictions at one position of each context; default: the last."""
        return self._predictions(self.hidden[:, position])

    def at(self, mask: Bool[Tensor, "batch pos"] | EllipsisType) -> Predictions:
        """The predictions at the masked positions, in reading order; `...` for all positions."""
        rows = self.hidden.flatten(0, 1) if mask is ... else self.hidden[mask]
        return self._predictions(rows)

    def _predictions(self, rows: Float[Tensor, "n _"]) -> Predictions:
        return Predictions(rows, self.unembed, self.d_vocab or rows.shape[-1])


class ModelInfo(Config):
    """The identity of a model, which fixes the meaning of its activations."""

    name: str
    architecture: str
    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    d_vocab: int
    n_ctx: int
    weights_digest: str
    """sha256 over the weights' names, shapes and float32 values."""
    tokenizer_digest: str
    """sha256 of the tokenizer's JSON form."""
    dtype: str = "float32"
    """Dtype of the weights and of the computation; activations depend on it."""
    weight_processing: str = "none"
    """How weights were processed after loading; saelab harvests raw weights."""
    bos_token_id: int | None = None
    special_token_ids: tuple[int, ...] = ()


@runtime_checkable
class Encoder(Protocol):
    """Text to token ids."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; the only special tokens are those that it names (`<bos>`)."""
        ...


@runtime_checkable
class Tokenizer(Encoder, Protocol):
    """Text to token ids and back."""

    @property
    def table(self) -> TokenTable:
        """The names of all tokens, and the text of token sequences."""
        ...

    @property
    def unknown_id(self) -> int | None:
        """The token that unknown words become; None if there is none."""
        ...

    def token(self, token_id: int) -> str:
        """A token's name: the text that it writes, spaces included; no two tokens share a name."""
        ...

    def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The text that the chat template makes of `messages`; UsageError if there is none."""
        ...


@runtime_checkable
class ActivationSource(Protocol):
    """A frozen causal language model whose sites can be read: what harvesting needs."""

    @property
    def info(self) -> ModelInfo:
        """Identity and shape of the model."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        ...

    def width(self, hook: str) -> int:
        """d_in of a site, heads flattened head-major; UsageError if the hook does not exist."""
        ...

    def capture(
        self, tokens: Int[Tensor, "batch pos"], hooks: Sequence[str]
    ) -> dict[str, Float[Tensor, "batch pos d_in"]]:
        """Activations at `hooks` from one forward pass that stops after the last of them."""
        ...

    def gradients(
        self,
        tokens: Int[Tensor, "batch pos"],
        hooks: Sequence[str],
        real: Bool[Tensor, "batch pos"],
    ) -> tuple[
        dict[str, Float[Tensor, "batch pos d_in"]], dict[str, Float[Tensor, "batch pos d_in"]]
    ]:
        """Activations at `hooks`, and dL/dx there, from one forward and one backward pass.

        L is the cross-entropy, summed over every real token except the first of its context.
        Positions that are not `real` (padding, at the end) have gradient zero.
        """
        ...


@runtime_checkable
class LanguageModel(ActivationSource, Protocol):
    """A frozen causal language model whose sites can be read and replaced."""

    def run(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        edits: Mapping[str, Edit] | None = None,
        hooks: Sequence[str] = (),
    ) -> ModelOutput:
        """One whole forward pass that applies the edits and reads each of `hooks`.

        If gradients are enabled, they flow from the logits and the activations back into the edits,
        never into the model's weights.
        """
        ...

    def logits(
        self,
        tokens: Int[Tensor, "batch pos"],
        edits: Mapping[str, Edit] | None = None,
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """The logits of `run`, all positions at once, without gradients."""
        ...

    def logit_effects(
        self, hook: str, directions: Float[Tensor, "n d_in"]
    ) -> Float[Tensor, "n d_vocab"] | None:
        """The change of the logits along the direct path when each direction at `hook` is added.

        None if `why_no_logits` gives a reason.
        """
        ...

    def residual_writes(
        self, hook: str, directions: Float[Tensor, "n d_in"]
    ) -> Float[Tensor, "n d_model"] | None:
        """What adding each direction at `hook` writes to the residual stream, or None."""
        ...

    def why_no_logits(self, hook: str) -> str | None:
        """Why directions at `hook` have no logit effects, as one sentence; None if they have."""
        ...
