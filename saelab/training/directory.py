"""What a run directory holds at the start: nothing, a run, or something else."""

from pathlib import Path
from typing import Any

import torch

from saelab.config import UsageError
from saelab.console import note
from saelab.files import atomic_write, make_directory
from saelab.formats.json_file import read_sealed_json, write_sealed_json
from saelab.lock import entries
from saelab.provenance import provenance
from saelab.sae.base import AbstractSAE
from saelab.sae.storage import save_sae
from saelab.training.config import TrainConfig
from saelab.training.longer import check_goes_on, write_config
from saelab.training.run import Run
from saelab.training.run_paths import WEIGHTS
from saelab.training.source import Source


def as_begun(config: TrainConfig, directory: Path) -> TrainConfig:
    """`config`, adapted to a run at `directory` that an older version began.

    Such a run continues with every row, and with the default `dead_after` of that version.
    """
    if not (directory / "config.json").is_file():
        return config
    options = Run(directory).options
    if "outliers" in options:
        return config
    silence = options.get("dead_after") if config.dead_after is None else config.dead_after
    return config.with_every_row().model_copy(update={"dead_after": silence})


def existing(config: TrainConfig, directory: Path) -> Run | None:
    """The run of this configuration at `directory`, finished or not; None if there is none.

    Options that do not affect the steps already done may differ: see `check_goes_on`.

    Raises:
        UsageError: the directory holds something else, or the run cannot continue with these
            options.
    """
    if not _holds_a_run(directory):
        return None
    run = Run(directory)
    check_goes_on(run, config)
    return run


def begun_import(directory: Path) -> Run | None:
    """The import at `directory`, finished or not; None if the directory is empty.

    Raises:
        UsageError: the directory holds something else.
    """
    if not _holds_a_run(directory):
        return None
    run = Run(directory)
    if run.options.get("n_tokens") != 0:
        raise taken(directory)
    return run


def taken(directory: Path) -> UsageError:
    """The error for a directory that holds something else."""
    return UsageError(f"{directory} is not empty; choose another --out.")


def _holds_a_run(directory: Path) -> bool:
    """Whether the directory holds a run; a run killed before it wrote config.json does not count.

    Raises:
        UsageError: the directory holds something else.
    """
    if (directory / "config.json").is_file():
        return True
    for path in entries(directory):
        if path.name != "provenance.json" or _record(path) is None:
            raise UsageError(f"{directory} is not empty and holds no run; choose another --out.")
    return False


def create(config: TrainConfig, directory: Path, source: Source, **facts: object) -> None:
    """Write provenance.json with these facts, and config.json, unless they are there.

    config.json is written last: without it a run has not begun, and its provenance is written
    again.
    """
    begun, path = (directory / "config.json").is_file(), directory / "provenance.json"
    if begun and _record(path) is not None:
        return
    if begun and path.exists():
        note(f"{path} was damaged; it is written again, of this process.")
    make_directory(directory)
    write_sealed_json(path, run_record(source, **facts))
    if not begun:
        write_config(config, directory)


def run_record(source: Source, **facts: object) -> dict[str, Any]:
    """The content of provenance.json for a run on the rows of `source`, with these facts."""
    manifest = source.store.manifest
    if manifest.model is None:
        facts["rows_digest"] = source.store.rows_digest
    if source.store.beside:
        facts["beside"] = [
            {"activations": other.manifest.content_digest, "model": other.manifest.model}
            for other in source.store.beside
        ]
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
    log: Path | None = None,
) -> Run:
    """Make `sae` a run at `out`, so that it can be evaluated, explained and browsed like any other.

    `record` becomes provenance.json. It is taken from another run of the same rows, with what
    differs. `facts` are added to the header of the weights, and `log` becomes metrics.jsonl. The
    weights are written last: a killed call leaves an unfinished run, which the same call writes
    again. A finished run is not changed. All processes that hold `sae` call this together.
    """
    leads, missing = sae.shard is None or sae.shard.leads, not (out / WEIGHTS).is_file()
    if leads and missing:
        make_directory(out)
        write_sealed_json(out / "provenance.json", record)
        write_config(config, out)
        if log is not None:
            atomic_write(out / "metrics.jsonl", log.read_bytes())
    if missing if sae.shard is None else sae.shard.any_all(torch.tensor(leads and missing)):
        save_sae(sae, out / WEIGHTS, facts)
    return Run(out)


def _record(path: Path) -> dict[str, Any] | None:
    """A provenance.json of saelab; None if the file is missing, damaged, or not saelab's."""
    try:
        record = read_sealed_json(path)
    except UsageError:
        return None
    return record if "schema_version" in record and "versions" in record else None


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
