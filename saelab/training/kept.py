"""Runs inside a run: its SAE at earlier steps, and what a longer training replaced."""

from pathlib import Path

from saelab.files import atomic_write, make_directory
from saelab.formats.json_file import write_sealed_json
from saelab.training.config import TrainConfig
from saelab.training.run import RESULTS, Run
from saelab.training.run_paths import AVERAGED, kept_at


def keeps(config: TrainConfig, step: int) -> bool:
    """Whether the SAE is kept after so many steps."""
    done, before = step * config.batch_size, (step - 1) * config.batch_size
    every = config.keep_every
    if every is not None and done // every > before // every:
        return True
    return any(before < n <= done for n in config.keep_at)


def as_kept(config: TrainConfig, step: int) -> TrainConfig:
    """The configuration of the run that is kept after so many steps.

    n_tokens is that of these steps. Defaults that follow from the whole run's n_tokens are written
    out.
    """
    changes = {
        "n_tokens": step * config.batch_size,
        "dead_after": config.silence,
        "warmup_steps": config.n_warmup,
        "keep_at": (),
        "keep_every": None,
    }
    return config.model_copy(update=changes)


def part_of(config: TrainConfig, step: int) -> dict[str, int]:
    """What provenance.json of a run kept after so many steps of `config` says about that."""
    return {"step": step, "of_n_tokens": config.n_tokens}


def set_aside(run: Run) -> Path | None:
    """Turn the results of a finished run into a kept run, before its training continues.

    Returns the kept run's path; None if nothing is to be kept. The weights move last, so that a
    killed call can be repeated.
    """
    if not run.finished:
        return None
    config, step = as_kept(run.config, run.config.n_steps), run.config.n_steps
    out = kept_at(run.path, config.n_tokens)
    if not (out / "weights.safetensors").is_file():
        record = run.provenance() | {"part_of": part_of(run.config, step)}
        make_directory(out)
        write_sealed_json(out / "provenance.json", record)
        write_sealed_json(out / "config.json", config.model_dump(mode="json"))
        atomic_write(out / "metrics.jsonl", (run.path / "metrics.jsonl").read_bytes())
    for name in (*RESULTS, AVERAGED, "weights.safetensors"):
        if (run.path / name).exists():
            _move(run.path / name, out / name)
    return out


def _move(path: Path, to: Path) -> None:
    if path.is_file():
        path.replace(to)
    elif not to.exists():
        path.rename(to)
    else:
        for inner in sorted(path.iterdir()):
            _move(inner, to / inner.name)
        path.rmdir()
