"""A store from arrays of one's own: no language model, no tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from saelab.activations.background import BackgroundWriter
from saelab.activations.columns import NO_TOKEN, Columns
from saelab.activations.dtypes import itemsize
from saelab.activations.format import MAX_ROWS_PER_UNIT, Dtype, Manifest, SiteSpec
from saelab.activations.labels import label_columns
from saelab.activations.prepare import Rows
from saelab.activations.writer import StoreWriter
from saelab.config import UsageError
from saelab.provenance import provenance

UNIT_BYTES = 256 * 2**20


def write_arrays(  # noqa: PLR0913 - labels come with their names
    path: Path | str,
    arrays: Mapping[str, Rows],
    *,
    labels: Mapping[str, Any] | Any = None,  # noqa: ANN401 - whatever numpy reads
    label_names: Sequence[str] | None = None,
    dtype: Dtype = "float32",
    rows_per_unit: int | None = None,
    seed: int = 0,
) -> Path:
    """Store one `[row d_in]` array (numpy, memory-mapped or torch) for each name; returns the path.

    All arrays have the same rows. Each row counts as a context of its own with one position and no
    token. `labels` are ground-truth features, true where a row has the feature, which `evaluate`
    compares latents with: a column of truth values for each name, or a `[row label]` table whose
    columns `label_names` names. Values are stored as `dtype`, float64 included. An interrupted call
    continues when it is made again.

        write_arrays("activations_cache/mine", {"layer_6": x}, dtype="bfloat16")

    Raises:
        UsageError: numbers of rows differ, a value is not finite, a label is not a truth value, or
            `path` holds another store.
    """
    n_rows = _common_length(arrays)
    names, table = label_columns(labels, label_names, n_rows)
    width = sum(array.shape[1] for array in arrays.values())
    fitting = max(1024, min(UNIT_BYTES // (width * itemsize(dtype)), MAX_ROWS_PER_UNIT))
    manifest = Manifest(
        model=None,
        sites=tuple(SiteSpec(hook=name, d_in=array.shape[1]) for name, array in arrays.items()),
        dtype=dtype,
        context_length=1,
        label_names=names,
        corpus=None,
        contexts_per_unit=fitting if rows_per_unit is None else rows_per_unit,
        n_contexts=n_rows,
        seed=seed,
        provenance=provenance(),
    )
    with StoreWriter.create(path, manifest) as writer, BackgroundWriter(writer) as background:
        for unit in writer.missing_units():
            rows = manifest.unit_contexts(unit)
            part = slice(rows.start, rows.stop)
            columns = _columns(rows, None if table is None else table[part])
            background.write_unit(
                unit, {name: array[part] for name, array in arrays.items()}, columns
            )
    return Path(path)


def _common_length(arrays: Mapping[str, Rows]) -> int:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        listed = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise UsageError(f"Arrays need the same number of rows, at least 1; got {listed}.")
    return next(iter(lengths.values()))


def _columns(rows: range, labels: Bool[np.ndarray, "row label"] | None) -> Columns:
    index = np.arange(rows.start, rows.stop)
    nothing = np.full(len(index), NO_TOKEN)
    return Columns(nothing, np.zeros_like(index), index, index, nothing[:, None], labels)
