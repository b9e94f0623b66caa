"""The start of a run directory: new, interrupted, done already, or somebody else's."""

import json
from pathlib import Path
from typing import Any

import torch

from saelab.config import UsageError
from saelab.console import note
from saelab.files import make_directory
from saelab.formats.json_file import read_sealed_json, write_sealed_json
from saelab.lock import entries
from saelab.provenance import provenance
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
    if not _holds_a_run(directory):
        return None
    run = Run(directory)
    # A run that was begun before an option existed has its default.
    defaults = {name: field.default for name, field in TrainConfig.model_fields.items()}
    defaults["outliers"] = "keep"
    old, new = defaults | run.options, json.loads(config.model_dump_json())
    if differing := [name for name in new if old[name] != new[name]]:
        changes = "; ".join(f"{n}: {old[n]} there, {new[n]} asked" for n in differing)
        raise UsageError(f"{directory} holds a run with other options ({changes}).")
    return run


def unfinished_import(directory: Path) -> bool:
    """Whether an import was killed there, which may be made again; False: there is nothing.

    Raises:
        UsageError: there is something else.
    """
    if not _holds_a_run(directory):
        return False
    run = Run(directory)
    if run.finished or run.options.get("n_tokens") != 0:
        raise UsageError(f"{directory} is not empty; choose another --out.")
    return True


def _holds_a_run(directory: Path) -> bool:
    """Whether a run was begun there; one that was killed before it had said how was not.

    Raises:
        UsageError: there is something else.
    """
    if (directory / "config.json").is_file():
        return True
    for path in entries(directory):
        if path.name != "provenance.json" or _record(path) is None:
            raise UsageError(f"{directory} is not empty and holds no run; choose another --out.")
    return False


def create(config: TrainConfig, directory: Path, source: Source, **facts: object) -> None:
    """Write provenance.json, with these facts, and config.json, unless they are there.

    config.json comes last: without it a run is not begun, and its provenance is written again.
    """
    begun, path = (directory / "config.json").is_file(), directory / "provenance.json"
    if begun and _record(path) is not None:
        return
    if begun and path.exists():
        note(f"{path} was damaged; it is written again, of this process.")
    manifest = source.store.manifest
    record = provenance(
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
    make_directory(directory)
    write_sealed_json(path, record)
    if not begun:
        write_sealed_json(directory / "config.json", config.model_dump(mode="json"))


def _record(path: Path) -> dict[str, Any] | None:
    """A provenance.json of saelab; None if it is missing, damaged, or of something else."""
    try:
        record = read_sealed_json(path)
    except UsageError:
        return None
    return record if "schema_version" in record and "versions" in record else None


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
