"""The language model that claims are measured on, with its store and its held-out text."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch

from saelab.activations.corpus import load_corpus
from saelab.activations.harvest import HarvestOptions, harvest
from saelab.claims.held_out import HeldOut
from saelab.config import UsageError
from saelab.formats.json_file import canonical_digest
from saelab.lm.load import load_language_model, resolve_device
from saelab.lm.protocol import LanguageModel
from saelab.training.config import TrainConfig
from saelab.training.recipes import (
    TINY_ATTENTION,
    TINY_EARLY,
    TINY_MLP_IN,
    TINY_MLP_OUT,
    TINY_RESIDUAL,
    Recipe,
)

T = TypeVar("T")

TINY = "tiny"
TEXT = "tiny"
N_TOKENS = 150_000
"""Tokens of the store; the recipes train on as many."""
N_CONTEXTS = 150
"""Contexts of held-out text: 19,050 rows of the tiny model's."""
TINY_WIDTH = 128


@dataclass(frozen=True)
class Sites:
    """The hook names of the sites that claims use: those of the recipes, or alike in depth."""

    early: str
    residual: str
    heads: str
    mlp_in: str
    mlp_out: str

    @classmethod
    def of(cls, n_layers: int) -> "Sites":
        """The sites of a model other than the tiny one, at a quarter and at half of its depth."""
        quarter, half = n_layers // 4, n_layers // 2
        return cls(
            f"blocks.{quarter}.hook_resid_post",
            f"blocks.{half}.hook_resid_post",
            f"blocks.{half}.attn.hook_z",
            f"blocks.{half}.ln2.hook_out",
            f"blocks.{half}.hook_mlp_out",
        )


TINY_SITES = Sites(TINY_EARLY, TINY_RESIDUAL, TINY_ATTENTION, TINY_MLP_IN, TINY_MLP_OUT)


class Subject:
    """A language model and its text. What is built of them is built once, and kept in `directory`.

    Args:
        directory: holds the stores, by a digest of what was harvested.
        model: `tiny`, or as for `saelab harvest --model`.
        text: `tiny`, or as for `saelab harvest --text`. Only the tiny model reads `tiny`.
        n_tokens: tokens of a store.
    """

    def __init__(
        self,
        directory: Path,
        *,
        model: str = TINY,
        text: str = TEXT,
        n_tokens: int = N_TOKENS,
        device: str = "auto",
    ) -> None:
        if (model == TINY) != (text == TEXT):
            raise UsageError(
                "The tiny model reads the text tiny, and no other model does; give --model and "
                f"--text, not {model} with {text}."
            )
        self.directory, self.model, self.text = directory, model, text
        self.n_tokens, self.device = n_tokens, device
        self._made: dict[Hashable, Any] = {}

    @cached_property
    def lm(self) -> LanguageModel:
        """The language model."""
        return load_language_model(self.model, device=self.device)

    @cached_property
    def resolved_device(self) -> torch.device:
        """The device of the model and of trained SAEs."""
        return resolve_device(self.device)

    @property
    def is_tiny(self) -> bool:
        """Whether it is the shipped model, whose text has ground-truth labels."""
        return self.model == TINY

    @cached_property
    def sites(self) -> Sites:
        """The sites to measure at."""
        return TINY_SITES if self.is_tiny else Sites.of(self.lm.info.n_layers)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returns, made at the first call with this key."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def store(self, *sites: str, gradients: bool = False) -> Path:
        """The store of these sites' activations on `n_tokens` tokens, harvested at the first call.

        Without names it has the early, the residual and the heads' site, which most claims use.
        """
        asked = sites or (self.sites.early, self.sites.residual, self.sites.heads)
        return self.once(
            ("store", asked, gradients), lambda: self._store(asked, gradients=gradients)
        )

    def _store(self, sites: tuple[str, ...], *, gradients: bool) -> Path:
        facts = [self.model, self.text, self.n_tokens, gradients, *sites]
        out = self.directory / f"store-{canonical_digest(facts)[:12]}"
        options = HarvestOptions(self.n_tokens, gradients=gradients)
        corpus = load_corpus(self.text, self.lm)
        return harvest(self.lm, list(sites), corpus, out=out, options=options).path

    def held_out(self, *sites: str, n_contexts: int = N_CONTEXTS) -> HeldOut:
        """The model's activations at these sites on text that no store has."""

        def read() -> HeldOut:
            corpus = load_corpus(self.text, self.lm, split="held-out")
            return HeldOut.read(
                self.lm, corpus, sites, min(n_contexts, corpus.available(n_contexts))
            )

        return self.once(("held out", sites, n_contexts), read)

    def fitted(self, recipe: Recipe) -> Recipe:
        """A recipe for the tiny model, for this model: as many latents per dimension.

        The learning rate falls with the square root of the width (2406.04093), and training reads
        as many tokens more as the store has. The tiny model's recipes stay as they are.
        """
        if self.is_tiny:
            return recipe
        wider = max(1.0, self.lm.info.d_model / TINY_WIDTH)
        return {name: self._fitted(config, wider) for name, config in recipe.items()}

    def _fitted(self, config: TrainConfig, wider: float) -> TrainConfig:
        sae = config.sae.model_copy(update={"d_sae": round(config.sae.d_sae * wider)})
        n_tokens = round(config.n_tokens * self.n_tokens / N_TOKENS)
        changes = {"sae": sae, "n_tokens": n_tokens, "lr": config.lr / wider**0.5}
        return config.model_copy(update=changes)
