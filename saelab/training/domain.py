"""Where an SAE applies: to activations of the kind it was trained on."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, ValidationError
from torch import Tensor

from saelab.config import Config, UsageError, first_problem


class Part(NamedTuple):
    """One of the sites that an SAE of several sites reads side by side.

    Attributes:
        width: of its rows.
        factor: by which its activations are multiplied before the SAE reads them.
        max_norm: training left out rows with a larger norm, before that; None for no limit.
    """

    width: int
    factor: float
    max_norm: float | None = None


@dataclass(frozen=True)
class Domain:
    """Where a run's SAE was trained: on which tokens' rows, and up to which norm.

    The SAE's output for an activation that training left out says nothing about the model. Code
    that applies a run's SAE to activations asks `covers`, and leaves the other activations
    unchanged.

    Attributes:
        special_token_ids: tokens whose rows training left out.
        max_norm: training left out rows with a larger norm at the site that the SAE reads: massive
            activations (arXiv 2402.17762). None for no limit.
        first_position: training left out rows at earlier positions of a context.
        max_target_norm: the same limit at the site that a transcoder reconstructs.
        parts: the sites of a joint site, which the SAE reads; empty for a single site.
    """

    special_token_ids: tuple[int, ...] = ()
    max_norm: float | None = None
    first_position: int = 0
    max_target_norm: float | None = None
    parts: tuple[Part, ...] = ()

    def covers(
        self,
        tokens: Int[Tensor, "*shape"],
        x: Float[Tensor, "*shape d_in"],
        *,
        target: Float[Tensor, "*shape d_out"] | None = None,
        positions: Int[Tensor, "*shape"] | None = None,
    ) -> Bool[Tensor, "*shape"]:
        """Which activations `x` at the site that the SAE reads are of the kind it was trained on.

        `target` is the target of a transcoder at the same rows, if known. `positions` are the
        positions inside the contexts. They are needed if `x` does not hold whole contexts; by
        default the last axis of `tokens` counts them.
        """
        placed = self.places(tokens, positions=positions)
        return placed & self.within(x, target).to(placed.device)

    def places(
        self, tokens: Int[Tensor, "*shape"], *, positions: Int[Tensor, "*shape"] | None = None
    ) -> Bool[Tensor, "*shape"]:
        """Which tokens training did not leave out for their id or their position."""
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
        """Which activations have norms within the limit; all if there is no limit."""
        inside = _within(x, self.max_norm)
        if any(part.max_norm is not None for part in self.parts):
            pieces = x.split([part.width for part in self.parts], dim=-1)
            for part, piece in zip(self.parts, pieces, strict=True):
                limit = None if part.max_norm is None else part.max_norm * part.factor
                inside &= _within(piece, limit)
        return inside if target is None else inside & _within(target, self.max_target_norm)

    def facts(self) -> dict[str, Any]:
        """The domain as JSON values; `read_domain` reads them."""
        parts = (
            {
                "parts": [
                    dict(zip(("width", "factor", "max_norm"), part, strict=True))
                    for part in self.parts
                ]
            }
            if self.parts
            else {}
        )
        values = asdict(self) | {"special_token_ids": list(self.special_token_ids)}
        return {name: value for name, value in values.items() if name != "parts"} | parts

    @property
    def limited(self) -> bool:
        """Whether it depends on the activations, not only on tokens and positions."""
        limits = (self.max_norm, self.max_target_norm, *(part.max_norm for part in self.parts))
        return any(limit is not None for limit in limits)


EVERYWHERE = Domain()
"""No limits: the domain of an SAE whose training is unknown."""


def norms(x: Float[Tensor, "*shape d_in"]) -> Float[Tensor, "*shape"]:
    """||x|| of each row in float32, whatever the dtype of `x`."""
    # Wider dtypes are rounded first, as a model in float32 would do.
    x = x.float() if x.dtype == torch.float64 else x
    return torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)


def _within(x: Float[Tensor, "*shape d_in"], limit: float | None) -> Bool[Tensor, "*shape"]:
    if limit is None:
        return torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
    return norms(x) <= limit


def read_domain(record: dict[str, Any]) -> Domain:
    """The domain of the run with this provenance.json.

    Runs from before domains were recorded have no limit except their model's special tokens.

    Raises:
        UsageError: the recorded domain is invalid.
    """
    found = record.get("domain")
    if found is None:
        found = {"special_token_ids": (record.get("model") or {}).get("special_token_ids", ())}
    try:
        values = _Facts.model_validate(found)
        parts = tuple(Part(each.width, each.factor, each.max_norm) for each in values.parts)
        return Domain(**values.model_dump(exclude={"parts"}), parts=parts)
    except ValidationError as error:
        raise UsageError(
            f"The run's provenance.json has no valid domain: {first_problem(error)}."
        ) from error


class _Part(Config):
    width: int = Field(gt=0)
    factor: float = Field(gt=0, allow_inf_nan=False)
    max_norm: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class _Facts(Config):
    """A domain as it is written in provenance.json."""

    special_token_ids: tuple[int, ...] = ()
    max_norm: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    first_position: int = Field(default=0, ge=0)
    max_target_norm: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    parts: tuple[_Part, ...] = ()
