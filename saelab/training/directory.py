"""The start of a run directory: new, interrupted, done already, or somebody else's."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from pydantic_core import to_jsonable_python

from saelab.activations.store import ActivationStore
from saelab.config import UsageError
from saelab.console import say
from saelab.files import atomic_write, atomic_write_json, sha256_file
from saelab.provenance import provenance
from saelab.sae.base import AbstractSAE
from saelab.sae.storage import save_sae
from saelab.training.config import TrainConfig
from saelab.training.kept import as_kept, set_aside
from saelab.training.run import Run, kept_at
from saelab.training.source import Source

FREE = {"n_tokens", "log_every", "checkpoint_every", "keep_at", "keep_every", "keep_state"}
"""Options that change nothing of the steps that are done; a run may go on with others."""


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

    Its options may differ in what changes nothing of the steps that are done: see `FREE`.

    Raises:
        UsageError: there is something else, or the run cannot go on as it is asked.
    """
    if not directory.exists() or not any(directory.iterdir()):
        return None
    if not (directory / "config.json").is_file():
        raise UsageError(f"{directory} is not empty and holds no run; choose another --out.")
    run = Run(directory)
    old, new = _options(run), json.loads(config.model_dump_json())
    differing = [name for name in new if old[name] != new[name] and name not in FREE]
    if differing := [name for name in differing if not _is_same(run, config, name)]:
        changes = "; ".join(f"{n}: {old[n]} there, {new[n]} asked" for n in differing)
        raise UsageError(f"{directory} holds a run with other options ({changes}).")
    _check_length(run, config)
    finished = run.finished and config.n_tokens == old["n_tokens"]
    if not finished and not is_same_store(run, config.activations):
        raise UsageError(
            f"{config.activations} holds other activations than {directory} was begun on; choose "
            "another --out."
        )
    return run


def settle(config: TrainConfig, run: Run) -> None:
    """Do what `config` asks of a run that is finished: drop its state, and note where its store is.

    Raises:
        UsageError: it asks to keep what is past.
    """
    check_not_past(run, config, config.n_steps)
    if not config.keep_state:
        shutil.rmtree(run.path / "checkpoints", ignore_errors=True)
    if Path(run.options["activations"]).resolve() != config.activations.resolve():
        moved = run.config.model_copy(update={"activations": config.activations})
        atomic_write(run.path / "config.json", moved.to_json().encode())


def _options(run: Run) -> dict[str, Any]:
    """The run's options; one that was begun before an option existed has its default."""
    fields = TrainConfig.model_fields.items()
    defaults = {name: to_jsonable_python(field.default, fallback=str) for name, field in fields}
    return defaults | {"outliers": "keep"} | run.options


def _is_same(run: Run, config: TrainConfig, name: str) -> bool:
    """Whether a path that is written otherwise leads to what the run was begun with."""
    if name == "activations":
        return is_same_store(run, config.activations)
    if name == "init_from" and config.init_from is not None:
        begun = (run.provenance().get("init_from") or {}).get("weights_sha256")
        weights = config.init_from / "weights.safetensors"
        return weights.is_file() and sha256_file(weights) == begun
    return False


def is_same_store(run: Run, path: Path) -> bool:
    """Whether the store at `path` is the one that the run was begun on, wherever that stood.

    Raises:
        UsageError: there is no store.
    """
    if not (run.path / "provenance.json").is_file():
        return Path(run.options["activations"]).resolve() == path.resolve()
    record, store = run.provenance(), ActivationStore(path)
    if record.get("activations") != store.manifest.content_digest:
        return False
    if store.manifest.model is not None:
        return True
    # What identifies a store of arrays says nothing of their values.
    values = record.get("rows_digest")
    if values is None:
        return Path(run.options["activations"]).resolve() == path.resolve()
    return values == store.rows_digest


def _check_length(run: Run, config: TrainConfig) -> None:
    """Refuse what a run of another length cannot do."""
    done, path = run.options["n_tokens"], run.path
    if config.n_tokens < done:
        raise UsageError(
            f"{path} holds a run of {done} tokens, more than n_tokens={config.n_tokens}; take as "
            "many or more, or another --out."
        )
    if config.n_tokens > done and run.finished and not any(path.glob("checkpoints/step_*")):
        raise UsageError(
            f"{path} is finished and kept no state to go on from; start from its weights instead: "
            f"--init-from {path} with another --out."
        )


def go_on(config: TrainConfig, directory: Path, step: int) -> None:
    """Let the run at `directory`, whose training stands at `step`, have the options of `config`.

    What was found out about the weights of a shorter run goes with them, to a run below it.

    Raises:
        UsageError: something is to be kept that is past already.
    """
    run = Run(directory)
    old = run.options
    if old == json.loads(config.model_dump_json()):
        return
    check_not_past(run, config, step)
    if old["n_tokens"] < config.n_tokens:
        if (aside := set_aside(run)) is not None:
            say(f"What {directory} was after {old['n_tokens']:,} tokens is now {aside}.")
        record = run.provenance()
        longer = [each for each in record.get("longer", ()) if each["from"] != old["n_tokens"]]
        made = {"from": old["n_tokens"], "to": config.n_tokens, "step": step, **provenance()}
        atomic_write_json(directory / "provenance.json", record | {"longer": [*longer, made]})
    atomic_write(directory / "config.json", config.to_json().encode())


def check_not_past(run: Run, config: TrainConfig, step: int) -> None:
    """Refuse to keep what the run was on the way to `step`, unless it is there.

    Raises:
        UsageError: it is not.
    """
    for n in config.keep_at:
        due = -(-n // config.batch_size)
        if due <= step and not kept_at(run.path, as_kept(config, due).n_tokens).exists():
            raise UsageError(
                f"--keep-at {n} is past: {run.path} has trained on {step * config.batch_size} "
                "tokens already; leave it out."
            )


def create(config: TrainConfig, directory: Path, source: Source, **facts: object) -> None:
    """Write config.json and provenance.json, with these facts, unless they are there."""
    if (directory / "config.json").is_file():
        return
    atomic_write_json(directory / "provenance.json", run_record(source, **facts))
    atomic_write(directory / "config.json", config.to_json().encode())


def run_record(source: Source, **facts: object) -> dict[str, Any]:
    """What provenance.json says of a run on the rows of `source`, and these facts."""
    manifest = source.store.manifest
    if manifest.model is None:
        facts["rows_digest"] = source.store.rows_digest
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
    """Make `sae` a run at `out`, so that it is evaluated, explained and browsed like any other.

    `record` is its provenance.json (of another run of the same rows: that run's, with what is
    different), `facts` join the header of its weights, `log` becomes its metrics.jsonl. The weights
    come last: what a kill left is no finished run, and is written again by the same call. A
    finished one stays as it is.
    """
    if not (out / "weights.safetensors").is_file():
        atomic_write_json(out / "provenance.json", record)
        atomic_write(out / "config.json", config.to_json().encode())
        if log is not None:
            atomic_write(out / "metrics.jsonl", log.read_bytes())
        save_sae(sae, out / "weights.safetensors", facts)
    return Run(out)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
