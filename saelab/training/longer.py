"""A run that continues: which options may differ, and for how many more tokens."""

import json
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from saelab.activations.store import ActivationStore
from saelab.config import UsageError, shortened
from saelab.console import say
from saelab.files import sha256_file
from saelab.formats.json_file import write_sealed_json
from saelab.provenance import provenance
from saelab.training.checkpoint import FREE, remove_checkpoints
from saelab.training.config import TrainConfig
from saelab.training.kept import as_kept, set_aside
from saelab.training.run import Run
from saelab.training.run_paths import kept_at

NAMED = 3
"""Options that a sentence names, and of the SAE's as many."""


def check_goes_on(run: Run, config: TrainConfig) -> None:
    """Refuse options with which this run cannot continue.

    Raises:
        UsageError: an option that affects the steps already done differs, or the store has changed.
    """
    path = run.path
    old, new = _options(run), json.loads(config.model_dump_json())
    differing = [name for name in new if old[name] != new[name] and name not in FREE]
    if differing := [name for name in differing if not _is_same(run, config, name)]:
        changes = "; ".join(
            f"{name}: {shortened(there)} there, {shortened(asked)} asked"
            for n in differing[:NAMED]
            for name, there, asked in _changes(n, old[n], new[n])[:NAMED]
        )
        raise UsageError(f"{path} holds a run with other options ({changes}).")
    _check_length(run, config)
    finished = run.finished and config.n_tokens == old["n_tokens"]
    if not finished and not is_same_store(run, config.activations):
        raise UsageError(
            f"{config.activations} holds other activations than {path} was begun on; choose "
            "another --out."
        )


def _changes(name: str, there: object, asked: object) -> list[tuple[str, object, object]]:
    """What of an option differs; of the SAE's, each."""
    if not (isinstance(there, dict) and isinstance(asked, dict)):
        return [(name, there, asked)]
    values = {n: (there.get(n), asked.get(n)) for n in {**asked, **there}}
    return [(f"{name}.{shortened(n)}", *two) for n, two in values.items() if two[0] != two[1]]


def settle(config: TrainConfig, run: Run) -> None:
    """Apply `config` to a finished run: drop its state if asked, and note the store's new place.

    Raises:
        UsageError: an SAE is to be kept at a step that is past.
    """
    check_not_past(run, config, config.n_steps)
    # A kill after the last step may leave files that only the steps needed.
    remove_checkpoints(run.path / "checkpoints", keep=config.keep_state)
    if is_moved(run, config):
        moved = run.config.model_copy(update={"activations": config.activations})
        write_config(moved, run.path)


def is_moved(run: Run, config: TrainConfig) -> bool:
    """Whether the run notes another path of its store than `config` does."""
    return Path(run.options["activations"]).resolve() != config.activations.resolve()


def _options(run: Run) -> dict[str, Any]:
    """The run's options, with defaults for options that did not exist when it was begun."""
    fields = TrainConfig.model_fields.items()
    defaults = {name: to_jsonable_python(field.default, fallback=str) for name, field in fields}
    return defaults | {"outliers": "keep"} | run.options


def _is_same(run: Run, config: TrainConfig, name: str) -> bool:
    """Whether two different paths lead to the same thing."""
    if name == "activations":
        return is_same_store(run, config.activations)
    if name == "beside":
        begun = [each["activations"] for each in run.provenance().get("beside", ())]
        return begun == [ActivationStore(p).manifest.content_digest for p in config.beside]
    if name == "init_from" and config.init_from is not None:
        begun = (run.provenance().get("init_from") or {}).get("weights_sha256")
        weights = config.init_from / "weights.safetensors"
        return weights.is_file() and sha256_file(weights) == begun
    return False


def is_same_store(run: Run, path: Path) -> bool:
    """Whether the store at `path` is the one the run was begun on, even if it was moved.

    Raises:
        UsageError: there is no store at `path`.
    """
    try:
        record = run.provenance()
    except UsageError:  # Damaged or lost in a kill; it is written again.
        return Path(run.options["activations"]).resolve() == path.resolve()
    store = ActivationStore(path)
    if record.get("activations") != store.manifest.content_digest:
        return False
    if store.manifest.model is not None:
        return True
    # The identity of a store of arrays does not depend on their values.
    values = record.get("rows_digest")
    if values is None:
        return Path(run.options["activations"]).resolve() == path.resolve()
    return values == store.rows_digest


def _check_length(run: Run, config: TrainConfig) -> None:
    """Refuse a length that this run cannot have."""
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
    """Give the run at `directory`, whose training stands at `step`, the options of `config`.

    The weights of a finished run and all results about them move to a kept run inside it.

    Raises:
        UsageError: an SAE is to be kept at a step that is past.
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
        write_sealed_json(directory / "provenance.json", record | {"longer": [*longer, made]})
    write_config(config, directory)


def check_not_past(run: Run, config: TrainConfig, step: int) -> None:
    """Refuse to keep the SAE at steps before `step`, unless it is already kept there.

    Raises:
        UsageError: the SAE is not there.
    """
    for n in config.keep_at:
        due = -(-n // config.batch_size)
        if due <= step and not kept_at(run.path, as_kept(config, due).n_tokens).exists():
            raise UsageError(
                f"--keep-at {n} is past: {run.path} has trained on {step * config.batch_size} "
                "tokens already; leave it out."
            )


def write_config(config: TrainConfig, directory: Path) -> None:
    """Write config.json."""
    write_sealed_json(directory / "config.json", config.model_dump(mode="json"))
