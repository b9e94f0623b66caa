"""What a training reports: sums kept on the device, read once per log line."""

import json
import math
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from saelab.config import Config
from saelab.console import note
from saelab.files import atomic_write, telling
from saelab.kernels.torch.figures import add_figures_
from saelab.shard import LatentShard, replicas_of
from saelab.training.sinks import Sinks
from saelab.types import Figures, LossTerms


class Interval(Config):
    """The sums of `IntervalMetrics`, as numbers."""

    rows: int = Field(ge=0)
    steps: int = Field(ge=0)
    error: float
    variance: float
    active: float
    loss: float
    parts: dict[str, float]

    @property
    def finite(self) -> bool:
        """Whether all sums are finite."""
        sums = (self.error, self.variance, self.active, self.loss, *self.parts.values())
        return all(math.isfinite(value) for value in sums)


@dataclass(frozen=True)
class Report:
    """A training's reports: its log, and the sums since the last line."""

    log: bytes
    interval: Interval


class IntervalMetrics:
    """Ratios of sums over the steps since the last line; nothing waits for the device.

    The sums stay where they are in the device's memory, so a CUDA graph may add to them. `shard` is
    this process's part of the latents, if there are others.
    """

    def __init__(self, mean: Float[Tensor, " d_in"], shard: LatentShard | None = None) -> None:
        self.mean, self.shard = mean, shard
        self._sums = torch.zeros(4, dtype=torch.float64, device=mean.device)
        self.error, self.variance, self.active, self.loss = self._sums
        self._parts: dict[str, Float[Tensor, ""]] = {}
        self.reset()

    def reset(self) -> None:
        """Start a new interval."""
        self.load(
            Interval(rows=0, steps=0, error=0.0, variance=0.0, active=0.0, loss=0.0, parts={})
        )

    def load(self, interval: Interval) -> None:
        """Continue with these sums; speed counts the rows from now on."""
        self.started = time.perf_counter()
        self.rows, self.steps, self.rows_before = interval.rows, interval.steps, interval.rows
        self.error.fill_(interval.error)
        self.variance.fill_(interval.variance)
        self.active.fill_(interval.active)
        self.loss.fill_(interval.loss)
        self._named = {*interval.parts}
        for name in interval.parts.keys() | self._parts.keys():
            self._part(name).fill_(interval.parts.get(name, 0.0))

    def interval(self) -> Interval:
        """The sums so far."""
        error, variance, active, loss = self._sums.tolist()
        return Interval(
            rows=self.rows,
            steps=self.steps,
            error=error,
            variance=variance,
            active=active,
            loss=loss,
            parts={name: float(part) for name, part in self.parts.items()},
        )

    @property
    def parts(self) -> dict[str, Float[Tensor, ""]]:
        """The sums of the loss's other terms in this interval, by name."""
        return {name: part for name, part in self._parts.items() if name in self._named}

    @torch.no_grad()
    def add(self, x: Float[Tensor, "batch d_in"], terms: LossTerms) -> None:
        """Add the sums of a step that reconstructed `x`.

        Several replicas add their sums, and their losses' mean.
        """
        shard, within, parts = self.shard, terms.variance, [*terms.parts.values()]
        here = shard is None and within is None
        sums = self._sums if here else torch.zeros_like(self._sums)
        add_figures_(sums, x, self.mean, terms.codes.values, terms.mse_sum, terms.total)
        if within is not None:
            sums[1] = within * len(x)
        if shard is not None:
            sums[2] = shard.sum_all(sums[2])
        if (replicas := replicas_of(shard)).count > 1:
            every = replicas.sum_all(torch.stack([*sums, *(part.double() for part in parts)]))
            every[3:] /= replicas.count
            sums, parts = every[:4], [*every[4:]]
        if not here:
            self._sums += sums
        for name, part in zip(terms.parts, parts, strict=True):
            self._part(name).add_(part)

    def count(self, rows: int, parts: Iterable[str]) -> None:
        """Count a step whose sums were added: its rows, and the names of its loss's other terms."""
        self.rows += rows
        self.steps += 1
        self._named.update(parts)

    def summary(self) -> Figures:
        """Loss, FVU (about the store's mean), L0, the loss's parts, and tokens per second."""
        elapsed = time.perf_counter() - self.started
        error, variance, active, loss = self._sums.cpu()
        return {
            "loss": float(loss) / self.steps,
            "fvu": float(error / variance),
            "l0": float(active) / self.rows,
            **{name: float(part) / self.steps for name, part in self.parts.items()},
            "tokens_per_second": (self.rows - self.rows_before) / max(elapsed, 1e-9),
        }

    def _part(self, name: str) -> Float[Tensor, ""]:
        if name not in self._parts:
            self._parts[name] = self._sums.new_zeros(())
        return self._parts[name]


class MetricsLog:
    """metrics.jsonl: one JSON object per line; a resumed run drops lines after its checkpoint."""

    def __init__(self, path: Path, *, after_step: int, text: bytes | None = None) -> None:
        """Start with `text`, or else with the file's lines up to this step."""
        self.path = path
        self.text = bytearray(_lines_until(path, after_step) if text is None else text)
        atomic_write(path, bytes(self.text))
        self._sinks = Sinks(path.parent, after_step)

    def write(self, values: Figures) -> None:
        """Append one line."""
        line = json.dumps(values).encode() + b"\n"
        self.text += line
        with telling(self.path), self.path.open("ab") as file:
            file.write(line)
        self._sinks.write(values)

    def sync(self) -> None:
        """Make the lines survive a power cut."""
        with telling(self.path), self.path.open("ab") as file:
            os.fsync(file.fileno())


def figures_of(lines: Sequence[Figures]) -> str:
    """The figures of one or more SAEs for the progress bar."""
    lost = [values["fvu"] for values in lines]
    fvu = f"{min(lost):.4f}" + (f" to {max(lost):.4f}" if len(lost) > 1 else "")
    l0 = sum(values["l0"] for values in lines) / len(lines)
    return f"FVU {fvu}  L0 {l0:.1f}  dead {sum(values['dead'] for values in lines):.0f}"


def _lines_until(path: Path, step: int) -> bytes:
    """The whole lines of a log up to this step."""
    if not step or not path.is_file():
        return b""
    lines = [(line, _step(line)) for line in path.read_bytes().splitlines(keepends=True)]
    # A killed process may leave an incomplete last line.
    if damaged := sum(found is None for _, found in lines[:-1]):
        note(f"{path} has {damaged} damaged lines; they are left out.")
    return b"".join(line for line, found in lines if found is not None and found <= step)


def _step(line: bytes) -> int | None:
    try:
        step = json.loads(line)["step"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) and line.endswith(b"\n") else None
