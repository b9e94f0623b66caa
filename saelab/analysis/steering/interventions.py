"""A change of latents as a value: what, by how much, in which units, and where."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Int
from pydantic import Field, NonNegativeInt
from torch import Tensor

from saelab.config import Config, UsageError
from saelab.lm.protocol import LanguageModel
from saelab.training.domain import EVERYWHERE, Domain

Op = Literal["add", "scale", "clamp", "ablate"]
Unit = Literal["a_max", "latent_max", "absolute"]
ErrorTerm = Literal["keep", "drop"]
Positions = Literal["all", "last"] | NonNegativeInt


class Intervention(Config):
    """A change of one or several latents, the same at every chosen position.

    With signed codes (AbsTopK) a latent means something at either sign: a
    negative amount goes toward its negative pole. With codes that are never negative, a negative
    amount writes what no code of the SAE could.
    """

    latents: tuple[NonNegativeInt, ...] = Field(min_length=1)
    """What is changed, all of them together."""
    op: Op = "add"
    """add: a + amount; scale: a * amount; clamp: amount, whatever it was; ablate: zero."""
    amount: float = 0.0
    """The strength of `add`, the value of `clamp`, the factor of `scale`; `ablate` ignores it."""
    unit: Unit = "a_max"
    """What amount 1 is for `add` and `clamp`. a_max: the largest |activation| of any latent at that
    position (arXiv 2505.20063); latent_max: the latent's own largest in features.h5; absolute: 1.
    """
    positions: Positions = "last"
    """all: every token at which the SAE is applied, so no special ones; last: from the prompt's
    last token on, so every token that is generated is steered; a number: from that position on (0
    is the first token, <bos> where there is one)."""
    error: ErrorTerm = "keep"
    """keep: x + (x_hat' - x_hat), what the SAE misses stays; drop: x_hat' alone."""

    def with_amount(self, amount: float | int) -> "Intervention":
        """The same change at another amount."""
        return self.model_copy(update={"amount": float(amount)})


def check_alike(changes: Sequence[Intervention]) -> None:
    """Refuse changes that one edit cannot make side by side.

    Raises:
        UsageError: they differ in more than the latents' numbers and the amount, or one names a
            latent twice.
    """
    shapes = {(c.op, c.unit, c.error, len(c.latents)) for c in changes}
    if len(shapes) != 1:
        raise UsageError(
            f"Changes of {len(shapes)} kinds cannot share a batch; give all of them the same op, "
            "unit, error term and number of latents."
        )
    for change in changes:
        if len(set(change.latents)) < len(change.latents):
            raise UsageError(f"{list(change.latents)} names a latent twice; name each once.")


def position_mask(
    lm: LanguageModel,
    tokens: Int[Tensor, "batch pos"],
    positions: Positions,
    n_prompt: int,
    domain: Domain = EVERYWHERE,
) -> Bool[Tensor, "batch pos"]:
    """Where `positions` are in contexts whose first `n_prompt` tokens are the prompt.

    Special tokens are never among them, nor what else the SAE's `domain` leaves out by token or
    position. What it leaves out by norm is known only when the model runs: `latent_edits` leaves
    that alone.

    Raises:
        UsageError: the position lies behind the prompt.
    """
    if isinstance(positions, int) and positions >= n_prompt:
        raise UsageError(
            f"Position {positions} lies behind the prompt, which has {n_prompt} tokens (0 to "
            f"{n_prompt - 1}); give one of these, 'all' or 'last'."
        )
    named = {"all": 0, "last": n_prompt - 1}
    first = named[positions] if isinstance(positions, str) else positions
    place = torch.arange(tokens.shape[1], device=lm.device) >= first
    special = torch.tensor(lm.info.special_token_ids, dtype=torch.long, device=lm.device)
    tokens = tokens.to(lm.device)
    return place & ~torch.isin(tokens, special) & domain.places(tokens)
