"""A sample of held-out rows with their codes: what is measured without the language model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.host.text import TextBatch, half_by_context
from saelab.types import SparseCodes

NO_LABELS = "The text has no ground-truth labels."


@dataclass(frozen=True)
class Skipped:
    """Stands for a measurement that could not be made.

    Attributes:
        reason: one sentence that says why.
    """

    reason: str


@dataclass(frozen=True)
class Rows:
    """Rows of a site, on the CPU.

    Attributes:
        x: the activations that the SAE reads, in float32.
        codes: rectangular.
        token: the id of each row's own token.
        fit: rows on which latents are chosen and probes fitted; the others are scored. The halves
            share no context.
        labels: what is true of each row, where the text says it.
        label_names: of the last axis of `labels`.
        hierarchies: by name, general labels as unions of special ones, where the text says so.
        target: what a transcoder reconstructs, in float32.
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
        """What is to be reconstructed: the target, or `x` itself."""
        return self.x if self.target is None else self.target


@dataclass
class RowSample:
    """Collects the first `n` rows of a stream."""

    n: int
    label_names: tuple[str, ...] = ()
    hierarchies: Mapping[str, Sequence[str]] = field(default_factory=dict)
    _x: list[Tensor] = field(default_factory=list)
    _codes: list[SparseCodes] = field(default_factory=list)
    _token: list[Tensor] = field(default_factory=list)
    _fit: list[Tensor] = field(default_factory=list)
    _labels: list[Tensor] = field(default_factory=list)
    _target: list[Tensor] = field(default_factory=list)
    _kept: int = 0

    def add(self, batch: TextBatch, codes: SparseCodes) -> None:
        """Keep of a batch what there is room for."""
        room = max(0, self.n - self._kept)
        if not room:
            return
        self._x.append(batch.x[:room].float().cpu())
        self._codes.append(first_rows(codes, room))
        self._token.append(batch.tokens[batch.mask][:room].cpu())
        self._fit.append(torch.from_numpy(half_by_context(batch))[:room])
        if (labels := batch.labels()) is not None:
            self._labels.append(torch.from_numpy(labels)[:room])
        if batch.target is not None:
            self._target.append(batch.target[:room].float().cpu())
        self._kept += len(self._x[-1])

    def rows(self) -> Rows:
        """What was kept; there must be some."""
        return Rows(
            x=torch.cat(self._x),
            codes=SparseCodes.stack(self._codes),
            token=torch.cat(self._token),
            fit=torch.cat(self._fit),
            labels=torch.cat(self._labels) if self._labels else None,
            label_names=self.label_names,
            hierarchies=self.hierarchies,
            target=torch.cat(self._target) if self._target else None,
        )


def first(rows: Rows, n: int) -> Rows:
    """The first `n` rows."""
    return replace(
        rows,
        x=rows.x[:n],
        codes=first_rows(rows.codes, n),
        token=rows.token[:n],
        fit=rows.fit[:n],
        labels=None if rows.labels is None else rows.labels[:n],
        target=None if rows.target is None else rows.target[:n],
    )


def first_rows(codes: SparseCodes, n: int) -> SparseCodes:
    """The first `n` rows, rectangular and on the CPU."""
    codes = codes.rectangular()
    return SparseCodes(codes.values[:n].cpu(), codes.indices[:n].cpu(), codes.d_sae)


def chosen_rows(codes: SparseCodes, which: Bool[Tensor, " row"]) -> SparseCodes:
    """The rows where `which` holds, rectangular."""
    codes = codes.rectangular()
    return SparseCodes(codes.values[which], codes.indices[which], codes.d_sae)


def active_entries(
    codes: SparseCodes,
) -> tuple[Int[Tensor, " event"], Int[Tensor, " event"], Float[Tensor, " event"]]:
    """Row, latent and value of every firing, rectangular or ragged codes alike."""
    on = codes.active
    return codes.rows()[on], codes.indices[on], codes.values[on]


def columns(codes: SparseCodes, latents: Int[Tensor, " n"]) -> Float[Tensor, "row n"]:
    """The values of a few latents on every row, in float64."""
    row, latent, value = active_entries(codes)
    place = torch.full((codes.d_sae,), -1, dtype=torch.long, device=latent.device)
    place[latents] = torch.arange(len(latents), device=latent.device)
    wanted = place[latent] >= 0
    out = torch.zeros(len(codes), len(latents), dtype=torch.float64, device=latent.device)
    out[row[wanted], place[latent[wanted]]] = value[wanted].double()
    return out


def poles(codes: SparseCodes) -> SparseCodes:
    """Non-negative codes of twice the width: latent i's negative firings become latent i + d_sae.

    The decoder rows of these are -W_dec. Signed codes can so be read where a measure was made for
    non-negative ones, and turning a latent's sign around only swaps its two poles.
    """
    shifted = codes.indices + codes.d_sae * (codes.values < 0)
    return SparseCodes(codes.values.abs(), shifted, 2 * codes.d_sae, codes.offsets)
