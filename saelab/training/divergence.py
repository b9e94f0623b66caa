"""When a training has diverged, and what is said then."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.config import UsageError
from saelab.sae.base import AbstractSAE
from saelab.sae.context import LossContext
from saelab.sae.decoder import device_of
from saelab.sae.losses import squared_error
from saelab.shard import replicas_of
from saelab.types import ActivationBatch

LIMIT = 1_000
"""A training diverges above this ratio of FVU to the untrained SAE's FVU (or to 1, if that is
more).

On planted rows every variant stays below a ratio of 1.3 at any learning rate that learns something.
Where the rate is far too high, the ratio passes a million within tens of steps. FVU 1 is a constant
prediction."""
ROWS = 64


class DivergedError(UsageError):
    """A training whose weights are useless; the CLI exits with 1."""

    exit_code = 1


def diverged(where: Path, step: int, found: str, saved: int | None, remedy: str) -> DivergedError:
    """The error to raise; `saved` is the step of the last checkpoint, which is whole."""
    kept = "no checkpoint had been written"
    if saved is not None:
        kept = f"the checkpoint of step {saved}, from before, is kept"
    return DivergedError(
        f"The training at {where} diverged at step {step} ({found}) and was stopped; {kept}. "
        f"{remedy[0].upper()}{remedy[1:]}, with another --out."
    )


def worse_than_constant(where: Path, fvu: float, remedy: str) -> str | None:
    """The warning for a training that ends at this FVU, if it learned nothing; else None."""
    if fvu < 1:
        return None
    return (
        f"{where} ends at FVU {fvu:.3g}, and a constant has 1: nothing was learned; {remedy}, or "
        "train for longer."
    )


@dataclass(frozen=True)
class Watch:
    """Checks whether an SAE in training still reconstructs, on a few rows from the start.

    Attributes:
        x: the rows that the SAE reads, scaled.
        wanted: the rows that it reconstructs, scaled.
        variance: V of the reconstructed site over the store, scaled.
        limit: the FVU above which it has diverged.
    """

    x: Float[Tensor, "n d_in"]
    wanted: Float[Tensor, "n d_out"]
    variance: float
    limit: float

    @classmethod
    def start(
        cls,
        sae: AbstractSAE,
        x: Float[Tensor, "row d_in"],
        wanted: Float[Tensor, "row d_out"],
        variance: float,
    ) -> "Watch":
        """The watch over a training that starts with `sae`."""
        # Copies: a view would keep all rows.
        unlimited = cls(x[:ROWS].clone(), wanted[:ROWS].clone(), variance, float("inf"))
        before = unlimited.fvu(sae)
        return cls(unlimited.x, unlimited.wanted, variance, LIMIT * max(1.0, before))

    @torch.no_grad()
    def fvu(self, sae: AbstractSAE) -> float:
        """FVU of `sae` on these rows by its training rule; waits for the device."""
        x, wanted = (rows.to(device_of(sae)) for rows in (self.x, self.wanted))
        # Inference thresholds may not be calibrated yet. Any gradient will do here.
        batch = ActivationBatch(x, target=wanted, grad=wanted)
        done = sae.training_pass(batch, LossContext(self.variance))
        if done.outer is not None:
            return float(done.outer.error / done.outer.variance)
        error = squared_error(wanted, done.activations)
        # All must find the same.
        return float(replicas_of(sae.shard).mean_all(error)) / self.variance

    def finds_wrong(self, fvu: float) -> bool:
        """Whether this FVU means that the training has diverged."""
        return not fvu <= self.limit  # Nor is NaN.

    def problem(self, sae: AbstractSAE) -> str | None:
        """What is wrong with these weights, in a few words; None if they have not diverged.

        A step's own figures describe the weights before it. This checks the weights after it,
        before they are written.
        """
        bad = torch.stack([~p.isfinite().all() for p in sae.parameters()]).any()
        if bool(bad) if sae.shard is None else sae.shard.any_all(bad):
            return "weights that are not finite"
        fvu = self.fvu(sae)
        return f"FVU {fvu:.3g}" if self.finds_wrong(fvu) else None
