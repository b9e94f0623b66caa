"""What is known of each row beside its activations: token, position, context, document, labels."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Int, Integer, UInt8

from saelab.activations.format import Manifest

NO_TOKEN = -1
"""The token id of rows that came from no text."""

STORED = {"token": "<i4", "position": "<u2", "context": "<u4", "document": "<u8", "contexts": "<i4"}
"""How each column is stored."""


@dataclass(frozen=True)
class Columns:
    """The columns of one unit, one entry per row, and the contexts that the rows come from.

    Attributes:
        token: token id of the row: `contexts[context - first context of the unit, position]`.
        position: index of the row's token inside its context.
        context: index of the row's context in the whole harvest.
        document: which document the token comes from.
        contexts: the full token ids of the unit's contexts, positions without a row included.
        labels: ground-truth labels in the order of the manifest's `label_names`; None if there are
            none.
        excluded: number of positions without a row, by reason; rows and excluded positions are all
            positions.
    """

    token: Integer[np.ndarray, " row"]
    position: Integer[np.ndarray, " row"]
    context: Integer[np.ndarray, " row"]
    document: Integer[np.ndarray, " row"]
    contexts: Integer[np.ndarray, "context pos"]
    labels: Bool[np.ndarray, "row label"] | None = None
    excluded: Mapping[str, int] = field(default_factory=dict)

    @property
    def n_rows(self) -> int:
        """Rows of the unit."""
        return len(self.token)

    def permuted(self, order: Int[np.ndarray, " row"]) -> "Columns":
        """The same unit with its rows in the given order."""
        return Columns(
            self.token[order],
            self.position[order],
            self.context[order],
            self.document[order],
            self.contexts,
            None if self.labels is None else self.labels[order],
            self.excluded,
        )


def pack_labels(labels: Bool[np.ndarray, "row label"]) -> UInt8[np.ndarray, "row byte"]:
    """Labels packed eight per byte, the first in the lowest bit."""
    return np.packbits(labels, axis=1, bitorder="little")


def unpack_labels(
    packed: UInt8[np.ndarray, "row byte"], n_labels: int
) -> Bool[np.ndarray, "row label"]:
    """The inverse of `pack_labels`."""
    return np.unpackbits(packed, axis=1, count=n_labels, bitorder="little").astype(bool)


def column_problem(columns: Columns, manifest: Manifest, unit: int) -> str | None:
    """What is wrong with the columns of a unit, or None.

    Each row must name a position of one of the unit's contexts, no position twice, and the token
    that the context has there. This finds columns that are shifted against each other.
    """
    return (
        _shape_problem(columns, manifest, unit)
        or _range_problem(columns, manifest, unit)
        or _alignment_problem(columns, manifest, unit)
    )


def _shape_problem(columns: Columns, manifest: Manifest, unit: int) -> str | None:
    expected = (len(manifest.unit_contexts(unit)), manifest.context_length)
    if columns.contexts.shape != expected:
        return f"contexts have shape {columns.contexts.shape}, the manifest plans {expected}"
    rows = columns.n_rows
    for name in ("position", "context", "document"):
        if len(getattr(columns, name)) != rows:
            return f"column {name} has {len(getattr(columns, name))} entries for {rows} rows"
    n_labels = len(manifest.label_names)
    if (columns.labels is None) != (n_labels == 0):
        return f"the manifest has {n_labels} label names; the labels must be an array if it has any"
    if columns.labels is not None and columns.labels.shape != (rows, n_labels):
        return f"labels have shape {columns.labels.shape}, expected {(rows, n_labels)}"
    if rows == 0:
        return "there is no row"
    return None


def _range_problem(columns: Columns, manifest: Manifest, unit: int) -> str | None:
    contexts = manifest.unit_contexts(unit)
    bounds = {
        "position": (0, manifest.context_length),
        "context": (contexts.start, contexts.stop),
        "document": (0, 2**63),
        "contexts": (-(2**31), 2**31),
    }
    for name, (low, high) in bounds.items():
        values = getattr(columns, name)
        if values.min() < low or values.max() >= high:
            return (
                f"column {name} spans {values.min()} to {values.max()}, allowed {low} to {high - 1}"
            )
    return None


def _alignment_problem(columns: Columns, manifest: Manifest, unit: int) -> str | None:
    local = columns.context.astype(np.int64) - manifest.unit_contexts(unit).start
    position = columns.position.astype(np.int64)
    wrong = int((columns.contexts[local, position] != columns.token).sum())
    if wrong:
        return f"{wrong} of {columns.n_rows} rows have another token than their context has there"
    if np.bincount(local * manifest.context_length + position).max() > 1:
        return "a position of a context occurs in two rows"
    missing = columns.contexts.size - columns.n_rows
    if missing != sum(columns.excluded.values()):
        return f"{missing} positions have no row, but {sum(columns.excluded.values())} are excluded"
    return None
