"""What the claims are measured with: held-out text, planted rows, several seeds at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from saelab.activations.arrays import write_arrays
from saelab.activations.corpus import load_corpus
from saelab.activations.harvest import model_input, row_mask
from saelab.lm.edits import replace_rows
from saelab.lm.protocol import LanguageModel
from saelab.sae.base import AbstractSAE
from saelab.training.config import TrainConfig
from saelab.training.loop import train_many
from saelab.training.recipes import PLANTED
from saelab.types import SparseCodes

SAEs = dict[str, list[AbstractSAE]]
"""By the name in the recipe, one for each seed."""


def trained(
    recipe: Mapping[str, TrainConfig], out: Path, *, seeds: int, lm: LanguageModel | None = None
) -> SAEs:
    """Every configuration of the recipe with seeds 0, 1, ..., from shared reads."""
    configs = {
        out / f"{i}-{seed}": config.model_copy(update={"seed": seed})
        for i, config in enumerate(recipe.values())
        for seed in range(seeds)
    }
    saes = [run.load_sae() for run in train_many(configs, device="cpu", lm=lm)]
    return {name: saes[i * seeds : (i + 1) * seeds] for i, name in enumerate(recipe)}


def fvu(x: Tensor, x_hat: Tensor) -> float:
    return float((x - x_hat).pow(2).sum() / (x - x.mean(0)).pow(2).sum())


def fvus(saes: list[AbstractSAE], x: Tensor) -> list[float]:
    return [fvu(x, sae.reconstruct(x)) for sae in saes]


def l0s(saes: list[AbstractSAE], x: Tensor) -> list[float]:
    return [sae.encode(x).mean_l0() for sae in saes]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@dataclass(frozen=True)
class HeldOut:
    """Text that no SAE was trained on, and the tiny model's activations on it."""

    lm: LanguageModel
    tokens: Tensor
    mask: Tensor
    x: dict[str, Tensor]
    logits: Tensor
    labels: dict[str, Tensor]

    @classmethod
    def read(cls, lm: LanguageModel, sites: list[str], n_contexts: int) -> "HeldOut":
        corpus = load_corpus("tiny", lm, split="held-out")
        contexts = corpus.read(0, n_contexts)
        mask = torch.from_numpy(row_mask(lm, contexts.tokens))
        tokens = model_input(contexts.tokens)
        with torch.no_grad():
            out = lm.run(tokens, hooks=sites)
        assert contexts.labels is not None
        columns = torch.from_numpy(np.asarray(contexts.labels))[mask].T
        labels = dict(zip(corpus.label_names, columns, strict=True))
        x = {site: out.activations[site][mask].float() for site in sites}
        return cls(lm, tokens, mask, x, out.logits, labels)

    def ce_increase(self, sae: AbstractSAE, site: str) -> float:
        """Nats per token that the model loses when it reads the reconstruction."""
        return self.increase_of(sae.reconstruct(self.x[site]), site)

    def increase_of(self, x_hat: Tensor, site: str) -> float:
        """The same for these rows."""
        edit = replace_rows(self.mask, x_hat)
        return self._ce(self.lm.logits(self.tokens, {site: edit})) - self._ce(self.logits)

    def _ce(self, logits: Tensor) -> float:
        counted = self.mask[:, :-1] & self.mask[:, 1:]
        return float(F.cross_entropy(logits[:, :-1][counted], self.tokens[:, 1:][counted]))


def precision(codes: SparseCodes, sign: int, label: Tensor) -> tuple[Tensor, Tensor]:
    """For each latent, the share of its firings of this sign on rows with the label; their number.

    NaN for latents without such firings.
    """
    fires = codes.values * sign > 0
    counts = torch.bincount(codes.indices[fires], minlength=codes.d_sae)
    on_label = fires & label[:, None]
    return torch.bincount(codes.indices[on_label], minlength=codes.d_sae) / counts, counts


def planted_store(directory: Path, x: Tensor) -> Path:
    return write_arrays(directory / "planted", {PLANTED: x})


def cosines(sae: AbstractSAE, atoms: Tensor) -> Tensor:
    """`[latent feature]`, between learned and planted atoms."""
    return F.normalize(sae.W_dec, dim=1) @ atoms.T
