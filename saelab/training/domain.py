"""Where an SAE applies: at the activations that are of the kind it was trained on."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, ValidationError
from torch import Tensor

from saelab.config import Config, UsageError, first_problem


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
        max_target_norm: of a transcoder, the same limit at the site that it reconstructs.
    """

    special_token_ids: tuple[int, ...] = ()
    max_norm: float | None = None
    first_position: int = 0
    max_target_norm: float | None = None

    def covers(
        self,
        tokens: Int[Tensor, "*shape"],
        x: Float[Tensor, "*shape d_in"],
        *,
        target: Float[Tensor, "*shape d_out"] | None = None,
        positions: Int[Tensor, "*shape"] | None = None,
    ) -> Bool[Tensor, "*shape"]:
        """Which activations `x`, as the SAE reads them, are of the kind it was trained on.

        `target` is what a transcoder is to reconstruct there, if that is known. `positions` are
        those inside their contexts, needed where `x` does not hold whole ones; by default the last
        axis of `tokens` counts them.
        """
        placed = self.places(tokens, positions=positions)
        return placed & self.within(x, target).to(placed.device)

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

    def within(
        self,
        x: Float[Tensor, "*shape d_in"],
        target: Float[Tensor, "*shape d_out"] | None = None,
    ) -> Bool[Tensor, "*shape"]:
        """Which activations have norms that training did not leave out; all without a limit."""
        inside = _within(x, self.max_norm)
        return inside if target is None else inside & _within(target, self.max_target_norm)

    def facts(self) -> dict[str, Any]:
        """The domain as JSON values; `read_domain` reads them."""
        return {**asdict(self), "special_token_ids": list(self.special_token_ids)}


EVERYWHERE = Domain()
"""No limits: the domain of an SAE of which no training is known."""


def norms(x: Float[Tensor, "*shape d_in"]) -> Float[Tensor, "*shape"]:
    """||x|| of each row in float32, whatever the number type of `x`."""
    # What is wider is rounded first, as the model in float32 would have it.
    x = x.float() if x.dtype == torch.float64 else x
    return torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)


def _within(x: Float[Tensor, "*shape d_in"], limit: float | None) -> Bool[Tensor, "*shape"]:
    if limit is None:
        return torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
    return norms(x) <= limit


def read_domain(record: dict[str, Any]) -> Domain:
    """The domain of the run whose provenance.json holds `record`.

    A run from before domains were recorded has no limit but the special tokens of its model.

    Raises:
        UsageError: what is recorded is no domain.
    """
    found = record.get("domain")
    if found is None:
        found = {"special_token_ids": (record.get("model") or {}).get("special_token_ids", ())}
    try:
        return Domain(**_Facts.model_validate(found).model_dump())
    except ValidationError as error:
        raise UsageError(
            f"The run's provenance.json has no valid domain: {first_problem(error)}."
        ) from error


class _Facts(Config):
    """A domain as provenance.json has it."""

    special_token_ids: tuple[int, ...] = ()
    max_norm: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    first_position: int = Field(default=0, ge=0)
    max_target_norm: float | None = Field(default=None, gt=0, allow_inf_nan=False)
