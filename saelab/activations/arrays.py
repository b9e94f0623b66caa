"""A store made from your own arrays, without a language model or tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from saelab.activations.background import BackgroundWriter
from saelab.activations.columns import NO_TOKEN, Columns
from saelab.activations.dtypes import itemsize
from saelab.activations.format import (
    GRADIENT_RANGE,
    MAX_ROWS_PER_UNIT,
    Dtype,
    Manifest,
    SiteSpec,
    hook_path,
    tokens_path,
)
from saelab.activations.hook_file import read_hook_header
from saelab.activations.labels import label_columns
from saelab.activations.order import permutation
from saelab.activations.prepare import RowPreparer, Rows
from saelab.activations.sealed import SealedFile
from saelab.activations.tokens_file import read_tokens_file
from saelab.activations.writer import StoreWriter
from saelab.config import UsageError
from saelab.provenance import provenance

UNIT_BYTES = 256 * 2**20
GRADIENT = {"kind": "gradient"}


def write_arrays(  # noqa: PLR0913 - labels come with their names
    path: Path | str,
    arrays: Mapping[str, Any],
    *,
    gradients: Mapping[str, Any] | None = None,
    labels: Mapping[str, Any] | Any = None,  # noqa: ANN401 - whatever numpy reads
    label_names: Sequence[str] | None = None,
    dtype: Dtype = "float32",
    rows_per_unit: int | None = None,
    seed: int = 0,
) -> Path:
    """Store one `[row d_in]` array per name; returns the path.

    An array may be a numpy array (memory-mapped files are read in parts), a torch tensor, a list of
    lists, a data frame, or anything that numpy makes an array of; integers become floats. All
    arrays have the same rows. Each row counts as a context of its own with one position and no
    token. `gradients` are dL/dx of your loss at the rows of the arrays of the same names, for
    gradient SAEs (for transcoders, at the target site); the store calls them NAME.gradient.
    `labels` are ground-truth features, with which `evaluate` compares latents: a bool column per
    name, or a `[row label]` table with its column names in `label_names`. Values are stored as
    `dtype`, float64 included. An interrupted call continues when it is repeated.

        write_arrays("activations_cache/mine", {"layer_6": x}, dtype="bfloat16")

    Raises:
        UsageError: an array is no table of real numbers, numbers of rows differ, gradients have
            another shape than their array or no array of their name, a value is not finite, a label
            is not a bool, or `path` holds another store or other values.
    """
    if not arrays:
        raise UsageError("There is no array to store; give at least one by its name.")
    tables = {name: _table(name, given) for name, given in arrays.items()}
    sites = [SiteSpec(hook=name, d_in=array.shape[1]) for name, array in tables.items()]
    if gradients:
        if dtype == "float16":
            raise UsageError(GRADIENT_RANGE)
        found = _gradient_tables(tables, gradients)
        sites += [sites[list(tables).index(n)].model_copy(update=GRADIENT) for n in found]
        tables |= {f"{name}.gradient": table for name, table in found.items()}
    n_rows = _common_length(tables)
    names, table = label_columns(labels, label_names, n_rows)
    width = sum(array.shape[1] for array in tables.values())
    fitting = max(1024, min(UNIT_BYTES // (width * itemsize(dtype)), MAX_ROWS_PER_UNIT))
    manifest = Manifest(
        model=None,
        sites=tuple(sites),
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
        missing = writer.missing_units()
        for unit in range(manifest.n_units):
            rows = manifest.unit_contexts(unit)
            given = {name: _floats(array[rows.start : rows.stop]) for name, array in tables.items()}
            columns = _columns(rows, None if table is None else table[rows.start : rows.stop])
            if unit not in missing:
                _check_same(writer, unit, given, columns.labels)
                continue
            background.write_unit(unit, given, columns)
    return Path(path)


def _gradient_tables(
    tables: Mapping[str, Tensor | np.ndarray], gradients: Mapping[str, Any]
) -> dict[str, Tensor | np.ndarray]:
    """The gradients as tables with the shapes of their arrays."""
    found: dict[str, Tensor | np.ndarray] = {}
    for name, given in gradients.items():
        if name not in tables:
            raise UsageError(
                f"There are gradients of {name!r}, but no such array; arrays are "
                f"{', '.join(tables)}."
            )
        if f"{name}.gradient" in tables:
            raise UsageError(
                f"{name}.gradient is what the gradients of {name} are called; give that array "
                "another name, or leave it out."
            )
        table = _table(f"the gradient of {name}", given)
        if tuple(table.shape) != tuple(tables[name].shape):
            raise UsageError(
                f"The gradient of {name} has shape {list(table.shape)}, and {name} has "
                f"{list(tables[name].shape)}; they need one row for each."
            )
        found[name] = table
    return found


def _table(name: str, given: Any) -> Tensor | np.ndarray:  # noqa: ANN401 - whatever people have
    """`given` as an array of real numbers with two axes."""
    if isinstance(given, Tensor):
        table = given.detach()
        plain = table.layout == torch.strided and not table.is_complex()
    else:
        try:
            table = given if isinstance(given, np.ndarray) else np.asarray(given)
        except (ValueError, TypeError) as error:
            raise UsageError(f"{name} cannot be made an array of: {error}.") from None
        plain = table.dtype.kind in "fiub" and not np.ma.is_masked(table)
    if not plain:
        raise UsageError(
            f"{name} holds {getattr(given, 'dtype', table.dtype)} values, masked or sparse ones "
            "perhaps; give a dense array of real numbers."
        )
    if table.ndim != 2 or table.shape[1] == 0:
        flat = f"[{', '.join(map(str, table.shape))}]"
        remedy = "x.reshape(-1, x.shape[-1])" if table.ndim > 2 else "x[:, None]"
        raise UsageError(
            f"{name} has shape {flat}, but [rows, d_in] with d_in at least 1 is needed"
            + ("." if table.ndim == 2 else f"; {remedy} makes it so.")
        )
    return table


def _floats(rows: Tensor | np.ndarray) -> Rows:
    """The same rows as floats that torch can read: positive strides, native byte order."""
    if isinstance(rows, Tensor):
        return rows if rows.is_floating_point() else rows.float()
    small = rows.dtype.kind == "f" and rows.dtype.itemsize <= 8
    native = rows.dtype.newbyteorder("=") if small else np.dtype(np.float64)
    return np.ascontiguousarray(rows, dtype=native)


def _check_same(
    writer: StoreWriter,
    unit: int,
    given: Mapping[str, Rows],
    labels: Bool[np.ndarray, "row label"] | None,
) -> None:
    """Refuse to keep an existing unit whose values differ from those given now."""
    manifest = writer.manifest
    if labels is not None:
        with SealedFile(tokens_path(writer.path, unit)) as file:
            kept = read_tokens_file(file, manifest, unit).columns.labels
        order = permutation(len(labels), manifest.seed, unit)
        if kept is None or not np.array_equal(labels[order], kept):
            first = manifest.unit_contexts(unit).start
            raise UsageError(
                f"{writer.path} holds other labels already, from row {first} on; give another "
                "path, or remove the store first."
            )
    for site in manifest.sites:
        order = permutation(len(given[site.name]), manifest.seed, unit)
        asked = RowPreparer(manifest.dtype).prepare(given[site.name], order)
        with SealedFile(hook_path(writer.path, site, unit)) as file:
            stored = read_hook_header(file, manifest, site, unit)
        if not np.array_equal(asked.xxh3, stored.xxh3):
            first = manifest.unit_contexts(unit).start
            raise UsageError(
                f"{writer.path} holds other values of {site.name} already, from row {first} on; "
                "give another path, or remove the store first."
            )


def _common_length(arrays: Mapping[str, Tensor | np.ndarray]) -> int:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        listed = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise UsageError(f"Arrays need the same number of rows, at least 1; got {listed}.")
    return next(iter(lengths.values()))


def _columns(rows: range, labels: Bool[np.ndarray, "row label"] | None) -> Columns:
    index = np.arange(rows.start, rows.stop)
    nothing = np.full(len(index), NO_TOKEN)
    return Columns(nothing, np.zeros_like(index), index, index, nothing[:, None], labels)
