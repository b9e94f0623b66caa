"""Where an SAE applies: at the activations that are of the kind it was trained on."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.config import UsageError


@dataclass(frozen=True)
class Domain:
    """Where a run's SAE was trained: which tokens' rows it has seen, and up to which norm.

    What an SAE makes of an activation that its training left out says nothing of the model. Whoever
    applies a run's SAE to activations asks `covers`, and lets the others pass as they are.

    Attributes:
        special_token_ids: tokens whose rows were left out.
        max_norm: rows at the site that the SAE reads with a larger norm were left out: massive
            activations (arXiv 2402.17762); None: there is no limit.
        first_position: rows at earlier positions of a context were left out.
    """

    special_token_ids: tuple[int, ...] = ()
    max_norm: float | None = None
    first_position: int = 0

    def covers(
        self,
        tokens: Int[Tensor, "*shape"],
        x: Float[Tensor, "*shape d_in"],
        *,
        positions: Int[Tensor, "*shape"] | None = None,
    ) -> Bool[Tensor, "*shape"]:
        """Which activations `x`, as the SAE reads them, are of the kind it was trained on.

        `positions` are those inside their contexts, needed where `x` does not hold whole ones; by
        default the last axis of `tokens` counts them.
        """
        placed = self.places(tokens, positions=positions)
        return placed & self.within(x).to(placed.device)

    def places(
        self, tokens: Int[Tensor, "*shape"], *, positions: Int[Tensor, "*shape"] | None = None
    ) -> Bool[Tensor, "*shape"]:
        """Which tokens were not left out for what they are or where they stand."""
        special = torch.tensor(self.special_token_ids, dtype=tokens.dtype, device=tokens.device)
        placed = ~torch.isin(tokens, special)
        if self.first_position:
            if positions is None:
                positions = torch.arange(tokens.shape[-1], device=tokens.device).expand_as(tokens)
            placed &= positions >= self.first_position
        return placed

    def within(self, x: Float[Tensor, "*shape d_in"]) -> Bool[Tensor, "*shape"]:
        """Which activations have a norm that training did not leave out; all without a limit."""
        if self.max_norm is None:
            return torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
        return norms(x) <= self.max_norm

    def facts(self) -> dict[str, Any]:
        """The domain as JSON values; `read_domain` reads them."""
        return {
            "special_token_ids": list(self.special_token_ids),
            "max_norm": self.max_norm,
            "first_position": self.first_position,
        }


EVERYWHERE = Domain()
"""No limits: the domain of an SAE of which no training is known."""


def norms(x: Float[Tensor, "*shape d_in"]) -> Float[Tensor, "*shape"]:
    """||x|| of each row in float32, whatever the number type of `x`."""
    # What is wider is rounded first, as the model in float32 would have it.
    x = x.float() if x.dtype == torch.float64 else x
    return torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)


def read_domain(record: dict[str, Any]) -> Domain:
    """The domain of the run whose provenance.json holds `record`.

    A run from before domains were recorded has no limit but the special tokens of its model.

    Raises:
        UsageError: what is recorded is no domain.
    """
    found = record.get("domain")
    if found is None:
        return Domain(tuple((record.get("model") or {}).get("special_token_ids", ())))
    limit = found.get("max_norm")
    if limit is not None and not (isinstance(limit, int | float) and 0 < limit < math.inf):
        raise UsageError(f"provenance.json gives the domain a largest norm of {limit!r}.")
    return Domain(tuple(found["special_token_ids"]), limit, found.get("first_position", 0))
