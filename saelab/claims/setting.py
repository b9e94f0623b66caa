"""What a claim is measured with: seeds, a device, a directory of its own, a language model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from saelab.activations.arrays import write_arrays
from saelab.claims.subject import Subject
from saelab.sae.base import AbstractSAE
from saelab.training.config import TrainConfig
from saelab.training.loop import train_many
from saelab.training.recipes import PLANTED
from saelab.training.run import Run

SAEs = dict[str, list[AbstractSAE]]
"""By the name in the recipe, one for each seed."""


@dataclass(frozen=True)
class Setting:
    """The setting of one claim.

    Attributes:
        directory: the claim's own; what it writes there is found again after an interruption.
        subject: the language model, with its store and its held-out text, for all claims.
        n_seeds: how many seeds; a claim measures with 0, 1, ..., n_seeds - 1.
    """

    directory: Path
    subject: Subject
    n_seeds: int = 3

    @property
    def device(self) -> str:
        """The device of the subject, on which SAEs are trained too."""
        return str(self.subject.resolved_device)

    @property
    def seeds(self) -> range:
        """The seeds to measure with."""
        return range(self.n_seeds)

    def runs(self, recipe: Mapping[str, TrainConfig]) -> dict[str, list[Run]]:
        """Every configuration of the recipe trained with every seed, from shared reads.

        A run is in the subject's directory, under the digest of its configuration, so claims that
        need the same run train it once.
        """
        configs = {
            (name, seed): config.model_copy(update={"seed": seed})
            for name, config in recipe.items()
            for seed in self.seeds
        }
        out = {key: self.subject.directory / "runs" / _name(c) for key, c in configs.items()}
        ends = any(config.objective.startswith("e2e") for config in recipe.values())
        found = train_many(
            {out[key]: config for key, config in configs.items()},
            device=self.device,
            lm=self.subject.lm if ends else None,
        )
        runs = {run.path: run for run in found}
        return {name: [runs[out[name, seed]] for seed in self.seeds] for name in recipe}

    def trained(self, recipe: Mapping[str, TrainConfig]) -> SAEs:
        """The SAEs of `runs`, on the device."""
        runs = self.runs(recipe)
        return {name: [run.load_sae(self.device) for run in each] for name, each in runs.items()}

    def planted(self, x: Float[Tensor, "row d_in"]) -> Path:
        """A store of these rows, at the site `PLANTED`."""
        return write_arrays(self.directory / "planted", {PLANTED: x})


def _name(config: TrainConfig) -> str:
    return f"{config.sae.variant}-{config.seed}-{config.digest()[:12]}"
