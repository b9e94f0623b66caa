"""What several kinds of step share: their result, and the state of an SAE that is a module."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.sae.base import AbstractSAE
from saelab.training.average import WeightAverage
from saelab.training.dead import DeadLatents
from saelab.training.source import Batch
from saelab.types import ActivationBatch, LossTerms

PREFIX = "sae."


@dataclass(frozen=True)
class StepResult:
    """Result of one step.

    Attributes:
        x: the rows that the SAE reconstructs.
        terms: its loss terms; the codes are valid until the next step.
        gradient_norm: before clipping; None if nothing needed it.
    """

    x: Float[Tensor, "batch d_in"]
    terms: LossTerms
    gradient_norm: Float[Tensor, ""] | None


Measure = Callable[[StepResult], object]
"""What is done with the result of each step."""


def ignore(_: StepResult) -> None:
    """Do nothing with a result."""


def as_read(batch: Batch, dtype: torch.dtype, target_scale: float) -> Batch:
    """The batch as a step reads it: rows of this dtype or float32, and targets times their factor.

    A step that rounds its rows to this dtype would round float32 copies of them to the same bits.
    """
    if not isinstance(batch, ActivationBatch):
        return batch
    x, target, grad = batch.x, batch.target, batch.grad
    if x.dtype != dtype:
        x, target = x.float(), None if target is None else target.float()
    if target is not None and target_scale != 1.0:
        target = target * target_scale
    return ActivationBatch(x, target, grad)


def module_tensors(
    sae: AbstractSAE, dead: DeadLatents, average: WeightAverage | None
) -> dict[str, Tensor]:
    """What a step changes of these, by name."""
    tensors = {f"{PREFIX}{name}": value for name, value in sae.state_dict().items()}
    tensors["since_fired"] = dead.since_fired
    return tensors | (average.tensors() if average else {})


def load_module(
    tensors: dict[str, Tensor], sae: AbstractSAE, dead: DeadLatents, average: WeightAverage | None
) -> None:
    """Continue from the `module_tensors` among these."""
    weights = {k.removeprefix(PREFIX): v for k, v in tensors.items() if k.startswith(PREFIX)}
    sae.load_state_dict(weights)
    dead.since_fired = tensors["since_fired"]
    if average is not None:
        average.load(tensors)
