"""Training: from a configuration to a run directory."""

import json
import shutil
from pathlib import Path

import torch

from saelab.config import UsageError
from saelab.console import progress
from saelab.files import atomic_write, atomic_write_json
from saelab.lm.load import resolve_device
from saelab.provenance import provenance
from saelab.sae.storage import save_sae
from saelab.training.config import TrainConfig
from saelab.training.interrupt import StopRequest, stop_on_signal
from saelab.training.metrics import IntervalMetrics, MetricsLog, show
from saelab.training.run import Run
from saelab.training.schedule import learning_rate
from saelab.training.state import TrainingState
from saelab.types import Figures


def train(config: TrainConfig, *, out: str | Path, device: str | torch.device = "auto") -> Run:
    """The trained run at `out`; an interrupted one continues from its last checkpoint.

    SIGTERM or Ctrl-C saves a checkpoint and raises SystemExit.

    Raises:
        UsageError: the store, the site or an option does not fit, or `out` holds another run.
    """
    directory = Path(out)
    if (done := _existing(config, directory)) is not None and done.finished:
        return done
    where = resolve_device(device)
    state = TrainingState.start(config, where)
    _create(config, directory, state, where)
    state.restore(directory / "checkpoints")
    with stop_on_signal() as stop:
        _run_steps(state, directory, stop)
    facts = {"total_variance": repr(state.total_variance), "site": config.site}
    save_sae(state.sae, directory / "weights.safetensors", facts)
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)
    return Run(directory)


def _run_steps(state: TrainingState, directory: Path, stop: StopRequest) -> None:
    config = state.config
    log = MetricsLog(directory / "metrics.jsonl", after_step=state.step)
    metrics = IntervalMetrics(state.mean)
    batches = iter(state.batches)
    n_tokens, done = (n * config.batch_size for n in (config.n_steps, state.step))
    with progress(f"Train {config.sae.variant}", n_tokens, "tokens", done) as bar:
        while state.step < config.n_steps:
            batch = next(batches)
            terms, norm = state.advance(batch)
            metrics.update(batch, terms)
            if state.step % config.log_every == 0 or state.step == config.n_steps:
                values = _log_line(state, metrics, float(norm))
                log.write(values)
                show(bar, metrics.rows, values)
                metrics.reset()
            if stop.signal is not None:
                state.save(directory / "checkpoints")
                raise SystemExit(128 + stop.signal)
            if state.step % config.checkpoint_every == 0:
                state.save(directory / "checkpoints")


def _log_line(state: TrainingState, metrics: IntervalMetrics, norm: float) -> Figures:
    values = metrics.summary()
    if not all(value == value and abs(value) != float("inf") for value in values.values()):
        raise UsageError(
            f"Training diverged at step {state.step} (loss {values['loss']}); lower --lr."
        )
    return {
        "step": state.step,
        "tokens": state.step * state.config.batch_size,
        **values,
        "dead": int(state.dead.dead.sum()),
        "lr": learning_rate(state.config, state.step - 1),
        "gradient_norm": norm,
    }


def _existing(config: TrainConfig, directory: Path) -> Run | None:
    if not directory.exists() or not any(directory.iterdir()):
        return None
    if not (directory / "config.json").is_file():
        raise UsageError(f"{directory} is not empty and holds no run; choose another --out.")
    run = Run(directory)
    old, new = run.options, json.loads(config.model_dump_json())
    if differing := [name for name in new if old.get(name) != new[name]]:
        changes = "; ".join(f"{n}: {old.get(n)} there, {new[n]} asked" for n in differing)
        raise UsageError(f"{directory} holds a run with other options ({changes}).")
    return run


def _create(
    config: TrainConfig, directory: Path, state: TrainingState, where: torch.device
) -> None:
    if (directory / "config.json").is_file():
        return
    manifest = state.store.manifest
    record = provenance(
        device=_device_name(where),
        activations=manifest.content_digest,
        model=manifest.model,
        corpus=manifest.corpus,
        context_length=manifest.context_length,
        total_variance=state.total_variance,
    )
    atomic_write_json(directory / "provenance.json", record)
    atomic_write(directory / "config.json", config.to_json().encode())


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
