"""What changes while an SAE trains, and one step of it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.sae.base import AbstractSAE, LossContext
from saelab.training.checkpoint import (
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from saelab.training.config import TrainConfig
from saelab.training.dead import DeadLatents
from saelab.training.objectives import Objective
from saelab.training.schedule import learning_rate
from saelab.training.source import Batch, Source
from saelab.types import LossTerms

ADAM_EPS = 6.25e-10  # arXiv 2406.04093, appendix A.3
StreamPlace = dict[str, int | str]


@dataclass(frozen=True)
class StepResult:
    """One step: the rows that the SAE read, its loss, and the gradient norm before clipping."""

    x: Float[Tensor, "batch d_in"]
    terms: LossTerms
    gradient_norm: Float[Tensor, ""]


@dataclass
class TrainingState:
    """An SAE, its optimizer, its dead latents, and how far it has come.

    Attributes:
        total_variance: V of the site, in the activations' own units.
        scale: what activations are multiplied by before the SAE reads them.
    """

    config: TrainConfig
    sae: AbstractSAE
    optimizer: torch.optim.Adam
    dead: DeadLatents
    total_variance: float
    scale: float
    step: int = 0

    @classmethod
    def start(
        cls, config: TrainConfig, source: Source, start_rows: Float[Tensor, "n d_in"]
    ) -> "TrainingState":
        """The state before the first step.

        Raises:
            UsageError: the options do not fit.
        """
        config.check()
        variance = source.site.total_variance
        scale = (source.site.d_in / variance) ** 0.5 if config.normalise and variance else 1.0
        # The initial weights are drawn on the CPU, so that a seed means the same on every device.
        sae = config.sae.build(source.site.d_in, torch.Generator().manual_seed(config.seed))
        sae.initialise(start_rows * scale)
        sae = sae.to(source.device)
        optimizer = torch.optim.Adam(sae.parameters(), lr=0.0, eps=ADAM_EPS)
        dead = DeadLatents(config.sae.d_sae, config.dead_after, source.device)
        return cls(config, sae, optimizer, dead, variance, scale)

    @property
    def finished(self) -> bool:
        """Whether the last step is done."""
        return self.step >= self.config.n_steps

    @property
    def context(self) -> LossContext:
        """What the next step's loss must know."""
        return LossContext(
            self.total_variance * self.scale**2,
            self.dead.mask(),
            self.step,
            self.config.n_steps,
            self.config.seed,
        )

    def advance(self, batch: Batch, objective: Objective) -> StepResult:
        """One optimizer step.

        The order matters: the gradient's radial part goes before Adam sees it, and atoms are
        renormalised after Adam has moved them.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        device = self.dead.since_fired.device.type
        half = self.config.precision == "bfloat16"
        with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
            x, terms = objective.loss(self.sae, batch, self.context, self.scale)
        self.dead.update(terms.codes)
        self.sae.observe(terms.codes)
        self.optimizer.zero_grad(set_to_none=True)
        terms.total.backward()
        self.sae.before_optimizer_step()
        limit = float("inf") if self.config.clip_norm is None else self.config.clip_norm
        norm = torch.nn.utils.clip_grad_norm_(self.sae.parameters(), limit)
        self.optimizer.step()
        self.sae.after_optimizer_step()
        self.step += 1
        return StepResult(x, terms, norm)

    def finish(self, rows: Float[Tensor, "n d_in"]) -> AbstractSAE:
        """The SAE for activations in their own units, calibrated on these rows of them."""
        self.sae.calibrate(rows.to(self.dead.since_fired.device) * self.scale)
        self.sae.rescale(self.scale)
        return self.sae

    def save(self, directory: Path, place: StreamPlace) -> None:
        """Write a checkpoint of this step below `directory`; `place` is where the stream stands."""
        tensors = {f"sae.{name}": value for name, value in self.sae.state_dict().items()}
        tensors |= optimizer_tensors(self.optimizer) | {"since_fired": self.dead.since_fired}
        save_checkpoint(directory, self.step, tensors, {"step": self.step, "batches": place})

    def restore(self, directory: Path) -> StreamPlace | None:
        """Continue from the newest checkpoint below `directory`; None if there is none.

        Returns where the stream stood.
        """
        found = load_checkpoint(directory, self.dead.since_fired.device)
        if found is None:
            return None
        tensors, state = found
        prefix = "sae."
        weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        self.sae.load_state_dict(weights)
        restore_optimizer(self.optimizer, tensors)
        self.dead.since_fired = tensors["since_fired"]
        self.step = state["step"]
        return state["batches"]
