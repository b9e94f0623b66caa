"""Ground-truth labels as named columns: checks of names, columns and tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from saelab.config import UsageError

MOST_LABELS = 1024
"""Most columns of a store: 128 bytes per row, and as many scores for each latent."""
LONGEST_NAME = 200
"""Most characters in a label's name."""


def check_label_names(names: Sequence[object], source: str) -> None:
    """Refuse unusable names of labels.

    Raises:
        UsageError: there are too many names, or a name occurs twice, is not text, is empty or too
            long.
    """
    if len(names) > MOST_LABELS:
        raise UsageError(
            f"{source} has {len(names)} label columns, more than the {MOST_LABELS} that are kept; "
            "leave some out."
        )
    seen = set[object]()
    for name in names:
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise UsageError(
                f"{source} names a label {name!r}; a name is printable text that is not empty."
            )
        if len(name) > LONGEST_NAME:
            raise UsageError(
                f"{source} names a label {name[:40]!r}... with {len(name)} characters, more than "
                f"{LONGEST_NAME}; shorten it."
            )
        if name in seen:
            raise UsageError(f"{source} has two labels named {name!r}; rename one.")
        seen.add(name)


def label_columns(
    labels: Mapping[str, Any] | Any,  # noqa: ANN401 - whatever numpy reads
    names: Sequence[str] | None,
    n_rows: int,
) -> tuple[tuple[str, ...], Bool[np.ndarray, "row label"] | None]:
    """Names and table of the labels of rows: one column per name, or a table with `names`.

    A column is anything of `n_rows` bools that numpy reads, 0 and 1 included.

    Raises:
        UsageError: a name, a shape or a value is invalid; the sentence says which.
    """
    if labels is None:
        if names is not None:
            raise UsageError(f"label_names has {len(names)} names, but no labels were given.")
        return (), None
    if isinstance(labels, Mapping):
        if names is not None:
            raise UsageError("The labels are given by name; leave label_names out.")
        check_label_names(tuple(labels), "labels")
        columns = [_truth(f"Label {name!r}", of, (n_rows,)) for name, of in labels.items()]
        return tuple(labels), np.stack(columns, axis=1) if columns else None
    if names is None:
        raise UsageError("A table of labels needs label_names, one a column.")
    check_label_names(names, "label_names")
    if not names:
        raise UsageError("label_names is empty; name each column, or give no labels.")
    return tuple(names), _truth("The table of labels", labels, (n_rows, len(names)))


def _truth(what: str, values: Any, shape: tuple[int, ...]) -> Bool[np.ndarray, "..."]:  # noqa: ANN401
    if callable(getattr(values, "cpu", None)):
        values = values.cpu()
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{what} is no array: {error}.") from None
    if array.shape != shape:
        raise UsageError(f"{what} has shape {array.shape}; these rows need {shape}.")
    if array.dtype == bool:
        return array
    other = array[(array != 0) & (array != 1)] if array.dtype.kind in "iuf" else array.ravel()
    if other.size:
        raise UsageError(
            f"{what} holds {str(other[0])[:40]} ({array.dtype}); a label is true or false on each "
            "row: make a column of a value by comparing with it."
        )
    return array.astype(bool)


def value_groups(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The columns of fields with several values, by field: `pos=noun` and `pos=verb` of `pos`."""
    groups: dict[str, list[str]] = {}
    for name in names:
        field, equals, _ = name.partition("=")
        if equals:
            groups.setdefault(field, []).append(name)
    return {field: tuple(of) for field, of in groups.items() if len(of) > 1}
