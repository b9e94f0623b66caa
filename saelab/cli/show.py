"""`saelab show`: print the content of a store or a run."""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from saelab.cli.options import Positional
from saelab.cli.parse import parse
from saelab.config import Config, UsageError
from saelab.console import shown

MOST_POSITIONS = 8
IMPORTED = ("imported_from", "licence", "paper", "notes", "stated")
"""What provenance.json says of an imported SAE."""

if TYPE_CHECKING:
    from jaxtyping import Int64
    from numpy import ndarray

    from saelab.activations.store import ActivationStore
    from saelab.training.run import Run


class ShowArguments(Config):
    """Print the content of an activation store, a run, or a set of runs.

    For a store: its sites with their widths, variances and massive activations, its rows, labels,
    model and text. For a run: its configuration, where its SAE applies, and its measurements. For a
    set: its runs, those that are missing, and what was measured with all at once.

        saelab show activations_cache/tiny
        saelab show runs/topk
    """

    path: Annotated[Path, Positional("PATH")]
    """The directory of a store, a run or a set."""
    json_: bool = False
    """Print JSON."""


def main(arguments: list[str]) -> int:
    """Parse and run."""
    from saelab.training.run_paths import is_run
    from saelab.training.sets import is_set

    args = parse(ShowArguments, "show", arguments)
    if (args.path / "manifest.json").is_file():
        values = _store(args.path)
    elif is_run(args.path):
        values = _run(args.path)
    elif is_set(args.path):
        values = _set(args.path)
    else:
        raise UsageError(f"{args.path} is neither an activation store nor a run, nor a set.")
    if args.json_:
        print(json.dumps(values, indent=2))
        return 0
    for line in _lines(values):
        print(line)
    return 0


def _lines(values: dict[str, Any], indent: str = "") -> Iterator[str]:
    """One line per value; an object goes below its name."""
    for name, value in values.items():
        label = indent + shown(name)
        if isinstance(value, dict) and value:
            yield label
            yield from _lines(value, indent + "  ")
        else:
            yield f"{label:<24} {_plain(value)}"


def _plain(value: object) -> str:
    """A value as people read it; --json has all digits."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(_plain, value)) or "none"
    if isinstance(value, dict) and value:
        return shown(json.dumps(value))
    if value is None or value == {}:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else shown(str(value))


def _store(path: Path) -> dict[str, Any]:
    from saelab.activations.store import ActivationStore
    from saelab.console import in_bytes

    store = ActivationStore(path)
    manifest = store.manifest
    provenance = manifest.provenance
    n_bytes = sum(file.stat().st_size for file in path.rglob("*.h5"))
    return {
        "kind": "activation store",
        "path": str(path),
        "rows": store.n_rows,
        "complete": store.complete,
        "units": f"{len(store.units)} of {manifest.n_units}",
        "size": in_bytes(n_bytes),
        "dtype": manifest.dtype,
        "context_length": manifest.context_length,
        "rows_policy": manifest.rows_policy,
        "excluded": _excluded(store),
        "sites": {name: _site(store, name) for name in store.sites if store.units},
        "shuffling": _shuffling(store),
        "labels": len(manifest.label_names),
        "model": manifest.model,
        "corpus": manifest.corpus,
        "text": provenance.get("text"),
        "seed": manifest.seed,
        "written": {name: provenance.get(name) for name in ("created", "device", "command")},
        "digest": manifest.content_digest,
    }


def _site(store: "ActivationStore", name: str) -> dict[str, Any]:
    view = store.one_site(name)
    mean_norm = float((view.mean**2).sum() ** 0.5)
    return {
        "kind": view.spec.kind,
        "d_in": view.d_in,
        "total_variance": view.total_variance,
        "norm_of_mean": mean_norm,
        "rms_norm": (view.total_variance + mean_norm**2) ** 0.5,
        "max_abs": view.sums.max_abs,
        **({} if view.spec.kind == "gradient" else {"outliers": _outliers(store, name)}),
    }


def _outliers(store: "ActivationStore", name: str) -> dict[str, Any]:
    """The massive rows of a site, their positions, and the statistics of the other rows."""
    if not store.one_site(name).norms_known:
        return {"rows": "not recorded in this older store; `saelab train` reads its norms once"}
    found = store.outliers(name)
    if found.max_norm is None:
        return {"median_norm": found.median_norm, "rows": 0}
    return {
        "median_norm": found.median_norm,
        "above_norm": found.max_norm,
        "rows": len(found.rows),
        "share_of_variance": found.share,
        "positions": _positions(store, found.rows),
        "total_variance_without": found.kept.total_variance,
    }


def _positions(store: "ActivationStore", rows: "Int64[ndarray, ' n']") -> dict[str, int]:
    """The numbers of these rows by position in their contexts; the commonest positions."""
    total: Counter[int] = Counter()
    # Rows are sorted, and units follow each other.
    ends = list(accumulate(store.unit_rows))
    for unit, n, end in zip(store.units, store.unit_rows, ends, strict=True):
        inside = rows[slice(*rows.searchsorted([end - n, end]))] - (end - n)
        if len(inside):
            total.update(store.tokens(unit).position[inside].tolist())
    most = {str(position): n for position, n in total.most_common(MOST_POSITIONS)}
    rest = total.total() - sum(most.values())
    return most | ({"others": rest} if rest else {})


def _excluded(store: "ActivationStore") -> dict[str, int]:
    """Number of positions without a row, by reason, over all committed units."""
    total: Counter[str] = Counter()
    for unit in store.units:
        total.update(store.tokens(unit).excluded)
    return dict(total)


def _shuffling(store: "ActivationStore") -> dict[str, Any] | None:
    """The variance of a batch mean, relative to that of independent rows.

    1 is perfect; "at best" is the value of a full permutation of the store.
    """
    if not store.units:
        return None
    from saelab.activations.mixing import WINDOW_BATCHES, mixing

    found = mixing(store)
    return {
        "design_effect": round(found.batch, 3),
        "at_best": round(found.ideal_batch, 3),
        f"over_{WINDOW_BATCHES}_batches": round(found.window, 3),
        f"over_{WINDOW_BATCHES}_at_best": round(found.ideal_window, 3),
    }


def _run(path: Path) -> dict[str, Any]:
    from saelab.training.run import Run

    run = Run(path)
    metrics, record = run.metrics(), run.provenance()
    return {
        "kind": "run",
        "path": str(path),
        "finished": run.finished,
        "imported": {n: record[n] for n in IMPORTED if record.get(n)},
        "weights": _weights(run) if run.finished else None,
        "config": run.config.model_dump(mode="json"),
        "domain": run.domain.facts(),
        "outliers": record.get("outliers"),
        "last_step": metrics[-1] if metrics else None,
        "reconstruction": run.evaluation("reconstruction"),
        "downstream": run.evaluation("downstream"),
        "features": _features(run),
    }


def _features(run: "Run") -> str | bool:
    """Whether the run has features, and if only of chosen latents, of how many."""
    from saelab.training.run_paths import CHOSEN_FEATURES

    every = run.features_path
    if every.is_file() or not every.with_name(CHOSEN_FEATURES).is_file():
        return every.is_file()
    # Imported here, as a run is shown without h5py, too.
    from saelab.analysis.records import Features

    features = Features.of(run.path)
    return f"of {len(features)} chosen latents among {features.file.facts['of_latents']}"


def _weights(run: "Run") -> dict[str, Any]:
    """The size and dtypes of the weights, and what is done to each row before them."""
    from saelab.console import in_bytes
    from saelab.formats.tensor_header import TYPES, read_tensor_header

    header = read_tensor_header(run.weights)
    return {
        "size": in_bytes(run.weights.stat().st_size),
        "row_norm": header.metadata.get("row_norm"),
        **{
            name: f"{TYPES[spec.code]} {' x '.join(map(str, spec.shape))}".strip()
            for name, spec in header.tensors.items()
        },
    }


def _set(path: Path) -> dict[str, Any]:
    from saelab.evaluation.set_results import load_set_evaluation
    from saelab.training.sets import RunSet

    runs = RunSet(path)
    found = load_set_evaluation(path)
    measured = {} if found is None else found.values()
    return {
        "kind": "set of runs",
        "path": str(path),
        "recipe": runs.manifest.recipe,
        "model": runs.manifest.model.name,
        "runs": {
            member.name: f"{member.reads} -> {member.writes}{', missing' * (not there)}"
            for member, there in zip(runs.manifest.members, runs.finished, strict=True)
        },
        "at_once": {one.pop("what"): one for one in measured.get("at_once", ())},
    }
