"""The start of a run directory: new, interrupted, done already, or somebody else's."""

import json
from pathlib import Path
from typing import Any

import torch

from saelab.config import UsageError
from saelab.files import atomic_write, atomic_write_json
from saelab.provenance import provenance
from saelab.sae.base import AbstractSAE
from saelab.sae.storage import save_sae
from saelab.training.config import TrainConfig
from saelab.training.run import Run
from saelab.training.source import Source


def as_begun(config: TrainConfig, directory: Path) -> TrainConfig:
    """`config`, or the same as a run at `directory` understood it that an older version began.

    Such a run goes on with every row, and with the `dead_after` that was the default then.
    """
    if not (directory / "config.json").is_file():
        return config
    options = Run(directory).options
    if "outliers" in options:
        return config
    silence = options.get("dead_after") if config.dead_after is None else config.dead_after
    return config.with_every_row().model_copy(update={"dead_after": silence})


def existing(config: TrainConfig, directory: Path) -> Run | None:
    """The run of this configuration at `directory`, finished or not; None if there is nothing.

    Raises:
        UsageError: there is something else.
    """
    if not directory.exists() or not any(directory.iterdir()):
        return None
    if not (directory / "config.json").is_file():
        raise UsageError(f"{directory} is not empty and holds no run; choose another --out.")
    run = Run(directory)
    # A run that was begun before an option existed has its default.
    defaults = {name: field.default for name, field in TrainConfig.model_fields.items()}
    defaults |= {"outliers": "keep", "keep_at": []}
    old, new = defaults | run.options, json.loads(config.model_dump_json())
    if differing := [name for name in new if old[name] != new[name]]:
        changes = "; ".join(f"{n}: {old[n]} there, {new[n]} asked" for n in differing)
        raise UsageError(f"{directory} holds a run with other options ({changes}).")
    return run


def create(config: TrainConfig, directory: Path, source: Source, **facts: object) -> None:
    """Write config.json and provenance.json, with these facts, unless they are there."""
    if (directory / "config.json").is_file():
        return
    atomic_write_json(directory / "provenance.json", run_record(source, **facts))
    atomic_write(directory / "config.json", config.to_json().encode())


def run_record(source: Source, **facts: object) -> dict[str, Any]:
    """What provenance.json says of a run on the rows of `source`, and these facts."""
    manifest = source.store.manifest
    return provenance(
        device=_device_name(source.device),
        activations=manifest.content_digest,
        model=manifest.model,
        corpus=manifest.corpus,
        context_length=manifest.context_length,
        total_variance=source.selection.written.total_variance,
        outliers=source.selection.facts(),
        domain=source.selection.domain.facts(),
        **facts,
    )


def write_run(
    out: Path,
    config: TrainConfig,
    sae: AbstractSAE,
    *,
    record: dict[str, Any],
    facts: dict[str, str],
) -> Run:
    """Make `sae` a run at `out`, so that it is evaluated, explained and browsed like any other.

    `record` is its provenance.json (of another run of the same rows: that run's, with what is
    different), `facts` join the header of its weights. These come last: what a kill left is no
    finished run, and is written again by the same call. A finished one stays as it is.
    """
    if not (out / "weights.safetensors").is_file():
        atomic_write_json(out / "provenance.json", record)
        atomic_write(out / "config.json", config.to_json().encode())
        save_sae(sae, out / "weights.safetensors", facts)
    return Run(out)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
