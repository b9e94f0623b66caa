"""Latents set to 0, and what linear probes of mean activations then answer."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.evaluation.jackknife import jackknife
from saelab.evaluation.measurement import Column
from saelab.evaluation.probing import code_moments
from saelab.evaluation.rows import Rows, columns
from saelab.evaluation.tasks.options import FigureWithInterval
from saelab.evaluation.tasks.probes import dense, interval
from saelab.sae.base import AbstractSAE

N_VALUES = (2, 5, 10, 20, 50, 100, 500)
SHOWN = 10
GROUPS = 20
"""Parts of the scored texts that intervals leave out in turn."""


@dataclass(frozen=True)
class MeanProbe:
    """A linear probe of mean activations."""

    weights: Float[Tensor, " d"]
    bias: float

    @classmethod
    def on(
        cls,
        rows: Rows,
        train: Int[Tensor, " n"] | Bool[Tensor, " text"],
        label: Bool[Tensor, " text"],
    ) -> "MeanProbe":
        """A logistic regression on the rows of `train`."""
        return cls(*dense(rows.wanted[train], label[train]))


class Removal:
    """Probes of pooled rows, before and after latents are set to 0.

    The decoder is linear and the error stays, so the mean row loses sum_i mean(z_i) W_dec[i].
    """

    def __init__(self, rows: Rows, sae: AbstractSAE) -> None:
        self.rows = rows
        self.W_dec = sae.W_dec.detach().float().cpu()
        self.signed = bool((rows.codes.values < 0).any())

    def effects(
        self,
        probe: MeanProbe,
        label: Bool[Tensor, " text"],
        train: Bool[Tensor, " text"],
        *,
        clamp: bool = False,
    ) -> Float[Tensor, " d_sae"]:
        """(mean z with the label - mean z without it) (W_dec . w), for each latent.

        With `clamp`, latents that fire less with the label have none. Signed codes are not clamped:
        turning a latent around must change nothing.
        """
        difference = code_moments(self.rows.codes, label[:, None], train)[0][:, 0]
        if clamp and not self.signed:
            difference = difference.clamp_min(0)
        return difference * (self.W_dec @ probe.weights.float()).double()

    def scores(
        self, probes: Sequence[MeanProbe], effects: Float[Tensor, " d_sae"]
    ) -> list[Float[Tensor, "text probe"]]:
        """Each probe's scores: of the rows, then without the first n latents, for each n.

        Only latents of a positive effect are removed.
        """
        weights = torch.stack([probe.weights.double() for probe in probes], dim=1)
        bias = torch.tensor([probe.bias for probe in probes], dtype=torch.float64)
        before = self.rows.wanted.double() @ weights + bias
        order = effects.sort(descending=True, stable=True).indices[: max(N_VALUES)]
        order = order[effects[order] > 0]
        z = columns(self.rows.codes, order)
        writes = self.W_dec[order].double() @ weights
        return [before, *(before - z[:, :n] @ writes[:n] for n in N_VALUES)]


def grouped(
    text: Int[Tensor, " text"], found: list[Bool[Tensor, " text"]]
) -> Float[Tensor, "group figure"]:
    """How often each holds in each group of these texts, of which last the number."""
    found = [*found, torch.ones(len(text), dtype=torch.bool)]
    sums = torch.zeros(GROUPS, len(found), dtype=torch.float64)
    return sums.index_add_(0, text % GROUPS, torch.stack(found, dim=1).double())


def estimates(
    sums: Float[Tensor, "group *rest"], figure: Callable[..., Float[Tensor, " n"]]
) -> list[FigureWithInterval]:
    """`figure` for each of `N_VALUES`, with its 95 % interval over the scored texts (jackknife).

    The last of each group's sums is its number of texts.
    """
    counted = (sums.flatten(1)[:, -1] > 0)[:, None].expand(-1, len(N_VALUES))
    values, low, high = jackknife(sums, figure, counted)
    found = zip(values.tolist(), low.tolist(), high.tolist(), strict=True)
    # NaN, where there are too few texts for an interval, cannot be saved.
    return [
        FigureWithInterval(v, *(None if math.isnan(e) else e for e in ends)) for v, *ends in found
    ]


def by_number(found: Sequence[FigureWithInterval]) -> Iterator[str]:
    """The score for each of `N_VALUES` in %, that of 10 latents with its interval."""
    for n, one in zip(N_VALUES, found, strict=True):
        yield interval(one) if n == SHOWN else f"{one.value:.1%}"


def columns_for(task: str, clean: str) -> tuple[Column, ...]:
    """The columns of a table of scores for each of `N_VALUES`."""
    numbers = (Column(f"{n}", style="bold" if n == SHOWN else "") for n in N_VALUES)
    return Column(task, number=False, shared=True), Column(clean, shared=True), *numbers
