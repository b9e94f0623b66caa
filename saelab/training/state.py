"""What changes while an SAE trains, and one step of it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.activations.batches import ShuffledBatches
from saelab.activations.store import ActivationStore
from saelab.sae.base import AbstractSAE, LossContext
from saelab.training.checkpoint import (
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from saelab.training.config import TrainConfig
from saelab.training.dead import DeadLatents
from saelab.training.schedule import learning_rate
from saelab.types import ActivationBatch, LossTerms

ADAM_EPS = 6.25e-10  # arXiv 2406.04093, appendix A.3
CENTER_ROWS = 32_768  # rows for the geometric median, as in the same paper's code


@dataclass
class TrainingState:
    """The SAE, its optimizer, its dead latents and its place in the data."""

    config: TrainConfig
    sae: AbstractSAE
    optimizer: torch.optim.Adam
    dead: DeadLatents
    batches: ShuffledBatches
    store: ActivationStore
    total_variance: float
    mean: Float[Tensor, " d_in"]
    step: int = 0

    @classmethod
    def start(cls, config: TrainConfig, device: torch.device) -> "TrainingState":
        """The state before the first step.

        Raises:
            UsageError: the store or the site does not exist, or the options do not fit.
        """
        store = ActivationStore(config.activations)
        site = store.site(config.site)
        # The initial weights are drawn on the CPU, so that a seed means the same on every device.
        sae = config.sae.build(site.d_in, torch.Generator().manual_seed(config.seed))
        sample = site.sample(min(CENTER_ROWS, site.n_rows), seed=config.seed)
        sae.initialise_bias(geometric_median(sample))
        sae = sae.to(device)
        batches = ShuffledBatches(
            store, config.site, batch_size=config.batch_size, seed=config.seed, device=device
        )
        return cls(
            config,
            sae,
            torch.optim.Adam(sae.parameters(), lr=0.0, eps=ADAM_EPS),
            DeadLatents(config.sae.d_sae, config.dead_after, device),
            batches,
            store,
            site.total_variance,
            torch.from_numpy(site.mean).to(device, torch.float32),
        )

    def advance(self, batch: ActivationBatch) -> tuple[LossTerms, Float[Tensor, ""]]:
        """One optimizer step; returns its loss and the gradient norm before clipping.

        The order matters: statistics first, so that AuxK sees who is dead now; the gradient's
        radial part removed before Adam; atoms renormalised after it.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        context = LossContext(self.total_variance, self.dead.mask())
        terms = self.sae.loss(batch, context)
        self.dead.update(terms.codes)
        self.optimizer.zero_grad(set_to_none=True)
        terms.total.backward()
        self.sae.before_optimizer_step()
        limit = float("inf") if self.config.clip_norm is None else self.config.clip_norm
        norm = torch.nn.utils.clip_grad_norm_(self.sae.parameters(), limit)
        self.optimizer.step()
        self.sae.after_optimizer_step()
        self.step += 1
        return terms, norm

    def save(self, directory: Path) -> None:
        """Write a checkpoint of this step below `directory`."""
        tensors = {f"sae.{name}": value for name, value in self.sae.state_dict().items()}
        tensors |= optimizer_tensors(self.optimizer) | {"since_fired": self.dead.since_fired}
        state = {"step": self.step, "batches": self.batches.state_dict()}
        save_checkpoint(directory, self.step, tensors, state)

    def restore(self, directory: Path) -> bool:
        """Continue from the newest checkpoint below `directory`; False if there is none."""
        found = load_checkpoint(directory, self.dead.since_fired.device)
        if found is None:
            return False
        tensors, state = found
        prefix = "sae."
        weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        self.sae.load_state_dict(weights)
        restore_optimizer(self.optimizer, tensors)
        self.dead.since_fired = tensors["since_fired"]
        self.batches.load_state_dict(state["batches"])
        self.step = state["step"]
        return True


def geometric_median(
    points: Float[Tensor, "n d_in"], *, iterations: int = 100, tolerance: float = 1e-5
) -> Float[Tensor, " d_in"]:
    """The point with the least summed distance to `points`, by Weiszfeld's iteration.

    Stops when a step is shorter than `tolerance` times the points' mean distance.
    """
    center = points.mean(dim=0)
    for _ in range(iterations):
        distances = (points - center).norm(dim=1).clamp_min(1e-12)
        weights = 1 / distances
        new = (weights / weights.sum()) @ points
        if bool((new - center).norm() <= tolerance * distances.mean()):
            return new
        center = new
    return center
