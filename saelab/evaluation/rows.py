"""Held-out rows with their codes, for measurements without the language model."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.activations.corpus import Corpus
from saelab.host.text import TextBatch, half_by_context
from saelab.types import SparseCodes

NO_LABELS = "The text has no ground-truth labels."


@dataclass(frozen=True)
class Skipped:
    """The reason why a measurement could not be made.

    Attributes:
        reason: the reason, as one sentence.
    """

    reason: str


@dataclass(frozen=True)
class Rows:
    """Rows of a site: a sample on the CPU, or a batch on the SAE's device.

    Attributes:
        x: the activations that the SAE reads, in float32.
        codes: the rows' codes; rectangular in a sample.
        token: the id of each row's own token.
        fit: rows for choosing latents and fitting probes; the others are scored. The two halves
            share no context. `fit` and `labels` are on the CPU.
        labels: ground-truth labels of each row, if the text has labels.
        label_names: names of the last axis of `labels`.
        hierarchies: general labels as unions of special ones, by name, if the text has them.
        target: the activations that a transcoder reconstructs, in float32.
    """

    x: Float[Tensor, "row d_in"]
    codes: SparseCodes
    token: Int[Tensor, " row"]
    fit: Bool[Tensor, " row"]
    labels: Bool[Tensor, "row label"] | None = None
    label_names: tuple[str, ...] = ()
    hierarchies: Mapping[str, Sequence[str]] = field(default_factory=dict)
    target: Float[Tensor, "row d_out"] | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def wanted(self) -> Float[Tensor, "row d_out"]:
        """The activations to reconstruct: the target, or `x` if there is none."""
        return self.x if self.target is None else self.target


def rows_of_text(text: TextBatch, codes: SparseCodes, corpus: Corpus) -> Rows:
    """The rows of a batch of contexts of `corpus`."""
    labels = text.labels()
    return Rows(
        text.x,
        codes,
        token=text.tokens[text.mask],
        fit=torch.from_numpy(half_by_context(text)),
        labels=None if labels is None else torch.from_numpy(labels),
        label_names=corpus.label_names,
        hierarchies=corpus.label_hierarchies,
        target=text.target,
    )


@dataclass
class RowSample:
    """Collects the first `n` rows of a stream, on the CPU; by default all."""

    n: int = sys.maxsize
    _parts: list[Rows] = field(default_factory=list)

    @property
    def n_rows(self) -> int:
        """The number of rows kept so far."""
        return sum(map(len, self._parts))

    def add(self, rows: Rows) -> None:
        """Keep as many of these rows as are still needed."""
        room = self.n - self.n_rows
        if room > 0:
            self._parts.append(first(rows, room))

    def rows(self) -> Rows:
        """The rows kept; there must be some."""
        codes = SparseCodes.stack([part.codes for part in self._parts])
        columns: dict[str, Any] = {}
        for name in ("x", "token", "fit", "labels", "target"):
            parts = [getattr(part, name) for part in self._parts]
            columns[name] = None if parts[0] is None else torch.cat(parts)
        return replace(self._parts[0], codes=codes, **columns)


def first(rows: Rows, n: int) -> Rows:
    """The first `n` rows, on the CPU."""
    return replace(
        rows,
        x=rows.x[:n].cpu(),
        codes=first_rows(rows.codes, n),
        token=rows.token[:n].cpu(),
        fit=rows.fit[:n],
        labels=None if rows.labels is None else rows.labels[:n],
        target=None if rows.target is None else rows.target[:n].cpu(),
    )


def first_rows(codes: SparseCodes, n: int) -> SparseCodes:
    """The first `n` rows, rectangular and on the CPU."""
    codes = codes.rectangular()
    return SparseCodes(codes.values[:n].cpu(), codes.indices[:n].cpu(), codes.d_sae)


def chosen_rows(codes: SparseCodes, which: Bool[Tensor, " row"]) -> SparseCodes:
    """The rows where `which` is true, rectangular."""
    codes = codes.rectangular()
    return SparseCodes(codes.values[which], codes.indices[which], codes.d_sae)


def active_entries(
    codes: SparseCodes,
) -> tuple[Int[Tensor, " event"], Int[Tensor, " event"], Float[Tensor, " event"]]:
    """Row, latent and value of every firing, for rectangular or ragged codes."""
    on = codes.active
    return codes.rows()[on], codes.indices[on], codes.values[on]


def columns(codes: SparseCodes, latents: Int[Tensor, " n"]) -> Float[Tensor, "row n"]:
    """The values of a few latents in every row, in float64."""
    row, latent, value = active_entries(codes)
    place = torch.full((codes.d_sae,), -1, dtype=torch.long, device=latent.device)
    place[latents] = torch.arange(len(latents), device=latent.device)
    wanted = place[latent] >= 0
    out = torch.zeros(len(codes), len(latents), dtype=torch.float64, device=latent.device)
    out[row[wanted], place[latent[wanted]]] = value[wanted].double()
    return out


def poles(codes: SparseCodes) -> SparseCodes:
    """Non-negative codes of twice the width: latent i's negative firings become latent i + d_sae.

    The decoder rows of these are -W_dec. So measures for non-negative codes work for signed ones,
    and flipping a latent's sign only swaps its two poles.
    """
    shifted = codes.indices + codes.d_sae * (codes.values < 0)
    return SparseCodes(codes.values.abs(), shifted, 2 * codes.d_sae, codes.offsets)
