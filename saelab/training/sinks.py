"""Other places for the lines of metrics.jsonl: TensorBoard and Weights & Biases, for who has them.

A sink never ends a training: one that fails is left out, with a note. The curves of a run that is
continued go on: TensorBoard forgets what was logged after the checkpoint, and W&B, by the id that
RUN/wandb.json keeps, drops the lines that it has already.
"""

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from saelab.config import UsageError
from saelab.console import note
from saelab.formats.json_file import read_sealed_json, write_sealed_json
from saelab.types import Figures

SinkKind = Literal["tensorboard", "wandb"]
TENSORBOARD, WANDB_ID = "tensorboard", "wandb.json"
"""The files that sinks keep in a run."""


class Sink(Protocol):
    """Where the lines of one run go."""

    def write(self, step: int, figures: Figures) -> None:
        """Log the figures of a step."""
        ...

    def close(self) -> None:
        """Send what waits."""
        ...


_kinds: ContextVar[tuple[SinkKind, ...]] = ContextVar("_kinds", default=())
_ends: ContextVar[ExitStack | None] = ContextVar("_ends", default=None)


@contextmanager
def logging_to(kinds: Sequence[SinkKind]) -> Iterator[None]:
    """Within the context, trainings also log to these sinks.

    Raises:
        UsageError: there is no such sink, or its package is not installed.
    """
    for kind in kinds:
        if kind not in get_args(SinkKind):
            raise UsageError(f"There is no log {kind!r}; choose from {get_args(SinkKind)}.")
        if find_spec(kind) is None:
            raise UsageError(
                f"--log {kind} needs the package {kind}: pip install {kind}. metrics.jsonl is "
                "written without it."
            )
    with ExitStack() as ends:
        told, open_ones = _kinds.set(tuple(dict.fromkeys(kinds))), _ends.set(ends)
        try:
            yield
        finally:
            _kinds.reset(told)
            _ends.reset(open_ones)


class Sinks:
    """The sinks of one run, as `logging_to` says; none outside of it."""

    def __init__(self, out: Path, step: int) -> None:
        """Open them; the run goes on after `step`.

        Raises:
            UsageError: one cannot be opened.
        """
        self._open: dict[str, Sink] = {}
        for kind in _kinds.get():
            try:
                self._open[kind] = _MAKERS[kind](out, step)
            except Exception as error:
                raise UsageError(f"--log {kind} cannot begin: {_line(error)}.") from error
        if (ends := _ends.get()) is not None:
            ends.callback(self._close)

    def write(self, values: Figures) -> None:
        """Log a line of metrics.jsonl."""
        figures = {name: value for name, value in values.items() if name != "step"}
        for kind, sink in list(self._open.items()):
            try:
                sink.write(int(values["step"]), figures)
            except Exception as error:  # noqa: BLE001 - of any package; the training goes on
                del self._open[kind]
                note(f"--log {kind} has failed and is left out: {_line(error)}.")

    def _close(self) -> None:
        for kind, sink in self._open.items():
            try:
                sink.close()
            except Exception as error:  # noqa: BLE001 - the run is written
                note(f"--log {kind} could not send its last lines: {_line(error)}.")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(". ") or type(error).__name__


class _TensorBoard:
    def __init__(self, out: Path, step: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(out / TENSORBOARD), purge_step=step + 1 if step else 0)

    def write(self, step: int, figures: Figures) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(f"train/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, out: Path, step: int) -> None:
        wandb = import_module("wandb")
        place = out / WANDB_ID
        if not (step and place.is_file()):
            write_sealed_json(place, {"id": uuid.uuid4().hex[:16]})
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "saelab"),
            name=out.name,
            id=str(read_sealed_json(place)["id"]),
            resume="allow",
            dir=str(out),
            config=read_sealed_json(out / "config.json"),
            reinit="create_new",
        )

    def write(self, step: int, figures: Figures) -> None:
        self._run.log(figures, step=step)

    def close(self) -> None:
        self._run.finish()


_MAKERS = {"tensorboard": _TensorBoard, "wandb": _WandB}
