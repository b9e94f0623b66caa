"""What saelab asks of a language model; everything that runs one goes through these few methods."""

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
"""Maps a site's activations `[batch pos d_in]` to what replaces them, of the same shape."""


@dataclass(frozen=True)
class ModelOutput:
    """What one forward pass gave.

    The vocabulary is large and logits of all positions seldom needed, so they are made on demand.

    Attributes:
        hidden: what the unembedding reads; without `unembed`, the logits themselves.
        activations: each hook that was asked for, after the edit of that hook if it has one.
        unembed: from rows of `hidden` to their logits.
        d_vocab: numbers of a position's logits; default: as many as `hidden` has.
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
        """The predictions at the masked positions, in reading order; at all of them for `...`."""
        rows = self.hidden.flatten(0, 1) if mask is ... else self.hidden[mask]
        return self._predictions(rows)

    def _predictions(self, rows: Float[Tensor, "n _"]) -> Predictions:
        return Predictions(rows, self.unembed, self.d_vocab or rows.shape[-1])


class ModelInfo(Config):
    """What identifies a model and fixes the meaning of its activations."""

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
    """What the weights are held and run in; part of what the activations are."""
    weight_processing: str = "none"
    """What was done to the weights after loading; saelab harvests raw weights."""
    bos_token_id: int | None = None
    special_token_ids: tuple[int, ...] = ()


@runtime_checkable
class Encoder(Protocol):
    """Text to token ids."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without special tokens but those that it names (`<bos>`)."""
        ...


@runtime_checkable
class Tokenizer(Encoder, Protocol):
    """Text to token ids and back."""

    @property
    def table(self) -> TokenTable:
        """The names of all tokens, and what a row of them says."""
        ...

    @property
    def unknown_id(self) -> int | None:
        """What words become that the vocabulary does not have, if they can."""
        ...

    def token(self, token_id: int) -> str:
        """A token's name: what it writes, spaces included; no two tokens share one."""
        ...

    def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The text that the model's chat template makes of `messages`; `UsageError` without one."""
        ...


@runtime_checkable
class ActivationSource(Protocol):
    """A frozen causal language model whose named sites can be read: what harvesting needs."""

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
        """Where the weights are."""
        ...

    def width(self, hook: str) -> int:
        """d_in of a site, heads flattened head-major; UsageError if there is no such hook."""
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

        L is the summed cross-entropy of every real token but the first of its context; positions
        that are not `real` (padding, which stands at the end) have gradient zero.
        """
        ...


@runtime_checkable
class LanguageModel(ActivationSource, Protocol):
    """A frozen causal language model whose named sites can be read and replaced."""

    def run(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        edits: Mapping[str, Edit] | None = None,
        hooks: Sequence[str] = (),
    ) -> ModelOutput:
        """One whole forward pass, each edited hook replaced on the way, each of `hooks` read.

        Where gradients are enabled they flow from the logits and the activations back into the
        edits, never into the model's weights.
        """
        ...

    def logits(
        self,
        tokens: Int[Tensor, "batch pos"],
        edits: Mapping[str, Edit] | None = None,
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """The logits of `run`, all of them at once, without gradients."""
        ...

    def logit_effects(
        self, hook: str, directions: Float[Tensor, "n d_in"]
    ) -> Float[Tensor, "n d_vocab"] | None:
        """What adding each direction at `hook` writes to the logits along the direct path.

        None where `why_no_logits` says why.
        """
        ...

    def residual_writes(
        self, hook: str, directions: Float[Tensor, "n d_in"]
    ) -> Float[Tensor, "n d_model"] | None:
        """What adding each direction at `hook` writes to the residual stream; None as above."""
        ...

    def why_no_logits(self, hook: str) -> str | None:
        """Why directions at `hook` have no logit effects, one sentence; None if they have."""
        ...
