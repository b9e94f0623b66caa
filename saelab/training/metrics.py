"""What a training reports: sums kept on the device, turned into figures once per log line."""

import json
import time
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.types import Figures, LossTerms


class IntervalMetrics:
    """Ratios of sums over the steps since the last line; nothing here waits for the device."""

    def __init__(self, mean: Float[Tensor, " d_in"]) -> None:
        self.mean = mean
        self.reset()

    def reset(self) -> None:
        """Start a new interval."""
        self.started = time.perf_counter()
        self.rows = 0
        zero = torch.zeros((), dtype=torch.float64, device=self.mean.device)
        self.error, self.variance, self.active, self.loss = (zero.clone() for _ in range(4))
        self.parts: dict[str, Tensor] = {}
        self.steps = 0

    @torch.no_grad()
    def update(self, x: Float[Tensor, "batch d_in"], terms: LossTerms) -> None:
        """Add one step, whose SAE read the rows `x`."""
        n = len(x)
        self.rows += n
        self.steps += 1
        self.error += terms.mse_sum * n
        self.variance += (x - self.mean).pow(2).sum()
        self.active += terms.codes.active.sum()
        self.loss += terms.total.detach()
        for name, part in terms.parts.items():
            self.parts[name] = self.parts.get(name, 0.0) + part

    def summary(self) -> Figures:
        """loss, FVU (about the store's mean), L0, the loss's parts, and tokens per second."""
        elapsed = time.perf_counter() - self.started
        return {
            "loss": float(self.loss) / self.steps,
            "fvu": float(self.error / self.variance),
            "l0": float(self.active) / self.rows,
            **{name: float(part) / self.steps for name, part in self.parts.items()},
            "tokens_per_second": self.rows / max(elapsed, 1e-9),
        }


class MetricsLog:
    """metrics.jsonl: one JSON object per line, cut back to the checkpoint when a run resumes."""

    def __init__(self, path: Path, *, after_step: int) -> None:
        self.path = path
        kept = path.read_text().splitlines() if path.is_file() else []
        kept = [line for line in kept if _step(line) <= after_step]
        path.write_text("".join(line + "\n" for line in kept))

    def write(self, values: Figures) -> None:
        """Append one line."""
        with self.path.open("a") as file:
            file.write(json.dumps(values) + "\n")


def figures(values: Figures) -> str:
    """The figures a trainer watches, for the progress bar."""
    return f"FVU {values['fvu']:.4f}  L0 {values['l0']:.1f}  dead {values['dead']:.0f}"


def _step(line: str) -> int:
    # A line that a killed process left unfinished is not JSON; the step it reported is lost.
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return 2**63
