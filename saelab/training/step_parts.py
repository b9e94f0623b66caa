"""What several kinds of step share: their result, and the state of an SAE that is a module."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from saelab.sae.base import AbstractSAE
from saelab.training.average import WeightAverage
from saelab.training.dead import DeadLatents
from saelab.types import LossTerms

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
