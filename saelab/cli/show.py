"""`saelab show`: print what a store or a run holds."""

import json
from pathlib import Path
from typing import Annotated, Any

import tyro

from saelab.cli.parse import parse
from saelab.config import Config, UsageError


class ShowArguments(Config):
    """Print what an activation store or a run holds."""

    path: Annotated[Path, tyro.conf.Positional]
    """A store's or a run's directory."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON."""


def main(arguments: list[str]) -> int:
    """Parse and run."""
    args = parse(ShowArguments, "show", arguments)
    if (args.path / "manifest.json").is_file():
        values = _store(args.path)
    elif (args.path / "config.json").is_file():
        values = _run(args.path)
    else:
        raise UsageError(f"{args.path} is neither an activation store nor a run.")
    if args.json_:
        print(json.dumps(values, indent=2))
        return 0
    for name, value in values.items():
        print(f"{name:<16} {value if isinstance(value, str) else json.dumps(value)}")
    return 0


def _store(path: Path) -> dict[str, Any]:
    from saelab.activations.store import ActivationStore

    store = ActivationStore(path)
    manifest = store.manifest
    sites = {
        name: {"d_in": store.site(name).d_in, "total_variance": store.site(name).total_variance}
        for name in store.sites
    }
    return {
        "kind": "activation store",
        "path": str(path),
        "rows": store.n_rows,
        "complete": store.complete,
        "units": f"{len(store.units)} of {manifest.n_units}",
        "dtype": manifest.dtype,
        "context_length": manifest.context_length,
        "sites": sites,
        "labels": len(manifest.label_names),
        "model": manifest.model,
        "corpus": manifest.corpus,
        "digest": manifest.content_digest,
    }


def _run(path: Path) -> dict[str, Any]:
    from saelab.training.run import Run

    run = Run(path)
    metrics = run.metrics()
    return {
        "kind": "run",
        "path": str(path),
        "finished": run.finished,
        "config": run.config.model_dump(mode="json"),
        "last_step": metrics[-1] if metrics else None,
        "reconstruction": run.evaluation("reconstruction"),
        "downstream": run.evaluation("downstream"),
        "features": run.features_path.is_file(),
    }
