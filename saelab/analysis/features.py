"""Features: what every latent fires on and what it writes, collected once and stored."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from saelab.analysis.examples import ExampleKeeper, Firings, WindowReader, firings
from saelab.analysis.feature_file import pack_vocabulary, write_features
from saelab.analysis.histogram import LatentHistograms
from saelab.analysis.records import Features
from saelab.config import UsageError
from saelab.console import progress
from saelab.evaluation.stream import TextBatch, corpus_of, stream
from saelab.files import sha256_file
from saelab.lm.protocol import LanguageModel
from saelab.provenance import provenance
from saelab.sae.base import AbstractSAE
from saelab.training.run import Run
from saelab.types import SparseCodes

N_LOGITS = 12
N_NEIGHBOURS = 8
ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class FeatureOptions:
    """How much evidence to keep for each latent.

    Attributes:
        n_tokens: tokens of the run's training text to read.
        n_examples: examples of each kind.
        reach: tokens of context on either side of an example's peak.
        batch_size: contexts per forward pass.
        seed: decides which firings are sampled as random examples.
    """

    n_tokens: int = 500_000
    n_examples: int = 20
    reach: int = 16
    batch_size: int = 32
    seed: int = 0


@torch.no_grad()
def collect_features(
    run: Run, lm: LanguageModel, options: FeatureOptions | None = None
) -> Features:
    """Stream text through the model and the SAE once; write the run's features.h5.

    Raises:
        UsageError: `lm` is not the run's model, or the text is gone.
    """
    options = options or FeatureOptions()
    sae = run.load_sae(str(lm.device))
    corpus = corpus_of(run, lm, "train")
    evidence = Evidence.empty(sae, options)
    with progress("Features", options.n_tokens, "tokens") as bar:
        for batch in stream(
            run, lm, corpus, n_tokens=options.n_tokens, batch_size=options.batch_size
        ):
            evidence.update(batch, sae.encode(batch.x))
            bar.advance(len(batch.x))
    if not evidence.n_rows:
        raise UsageError("The text has no tokens to collect features on.")
    arrays = (
        evidence.arrays() | logit_arrays(sae, lm, run.config.site) | neighbour_arrays(sae.W_dec)
    )
    tokens = [lm.tokenizer.token(i) for i in range(lm.info.d_vocab)]
    write_features(run.features_path, arrays | pack_vocabulary(tokens), _facts(run, evidence))
    return Features(run.path)


def _facts(run: Run, evidence: "Evidence") -> dict[str, Any]:
    record = run.provenance()
    return {
        "hook": run.config.site,
        "variant": run.config.sae.variant,
        "model": record["model"],
        "corpus": record["corpus"],
        "n_tokens": evidence.n_rows,
        "n_contexts": sum(len(tokens) for tokens in evidence.tokens),
        "reach": evidence.options.reach,
        "seed": evidence.options.seed,
        "sae_sha256": sha256_file(run.weights),
        "provenance": provenance(),
    }


@dataclass
class Evidence:
    """Everything the streaming pass accumulates."""

    options: FeatureOptions
    histograms: LatentHistograms
    keepers: dict[str, ExampleKeeper]
    n_fired: Int[ndarray, " d_sae"]
    n_negative: Int[ndarray, " d_sae"]
    largest: Float[ndarray, " d_sae"]
    total: Float[ndarray, " d_sae"]
    draw: np.random.Generator
    n_rows: int = 0
    tokens: list[Int[ndarray, "context pos"]] = field(default_factory=list)
    document: list[Int[ndarray, " context"]] = field(default_factory=list)

    @classmethod
    def empty(cls, sae: AbstractSAE, options: FeatureOptions) -> "Evidence":
        """Nothing seen yet."""
        d_sae = sae.d_sae
        kinds = ("top", "negative", "random")
        return cls(
            options,
            LatentHistograms(d_sae),
            {kind: ExampleKeeper(d_sae, options.n_examples, options.reach) for kind in kinds},
            np.zeros(d_sae, np.int64),
            np.zeros(d_sae, np.int64),
            np.zeros(d_sae, np.float32),
            np.zeros(d_sae, np.float64),
            np.random.default_rng(options.seed),
        )

    def update(self, batch: TextBatch, codes: SparseCodes) -> None:
        """Add a batch of contexts."""
        events = firings(codes, batch.mask, batch.first)
        magnitude = np.abs(events.value)
        d_sae = codes.d_sae
        self.n_rows += len(batch.x)
        self.n_fired += np.bincount(events.latent, minlength=d_sae)
        self.n_negative += np.bincount(events.latent[events.value < 0], minlength=d_sae)
        self.total += np.bincount(events.latent, weights=magnitude, minlength=d_sae)
        np.maximum.at(self.largest, events.latent, magnitude)
        self.histograms.update(events.latent, events.value)
        self.tokens.append(batch.contexts.tokens)
        self.document.append(batch.contexts.document)
        self._keep_examples(events, codes, batch)

    def _keep_examples(self, events: Firings, codes: SparseCodes, batch: TextBatch) -> None:
        windows = WindowReader(codes, batch.mask, batch.first, self.options.reach)
        positive, negative = np.flatnonzero(events.value > 0), np.flatnonzero(events.value < 0)
        for kind, which, sign in (("top", positive, 1), ("negative", negative, -1)):
            side = events.take(which)
            self.keepers[kind].update(side, sign * side.value, windows, one_per_context=True)
        chance = self.draw.random(len(events.latent), dtype=np.float32)
        self.keepers["random"].update(events, chance, windows, one_per_context=False)

    def arrays(self) -> dict[str, ndarray]:
        """The datasets that the text decides."""
        fired = np.maximum(self.n_fired, 1)
        arrays: dict[str, ndarray] = {
            "latent/n_fired": self.n_fired,
            "latent/n_negative": self.n_negative,
            "latent/max": self.largest,
            "latent/mean": (self.total / fired).astype(np.float32),
            "histogram/range": self.histograms.range,
            "histogram/counts": self.histograms.counts,
            "corpus/tokens": np.concatenate(self.tokens).astype(np.int32),
            "corpus/document": np.concatenate(self.document),
        }
        for kind, keeper in self.keepers.items():
            if kind != "negative" or self.n_negative.any():
                arrays |= {
                    f"{kind}/{name}": getattr(keeper, name)
                    for name in ("context", "position", "value", "window")
                }
        return arrays


def logit_arrays(sae: AbstractSAE, lm: LanguageModel, hook: str) -> dict[str, ndarray]:
    """For each latent, the tokens its decoder row raises and lowers most along the direct path.

    Empty for sites without a direct path to the logits.
    """
    n = min(N_LOGITS, lm.info.d_vocab)
    parts: dict[str, list[Tensor]] = {}
    for rows in sae.W_dec.split(ROWS_AT_ONCE):
        effects = lm.logit_effects(hook, rows)
        if effects is None:
            return {}
        for side, largest in (("top", True), ("bottom", False)):
            values, tokens = effects.topk(n, dim=-1, largest=largest)
            parts.setdefault(f"logits/{side}_values", []).append(values.float())
            parts.setdefault(f"logits/{side}_tokens", []).append(tokens.int())
    return {name: torch.cat(values).cpu().numpy() for name, values in parts.items()}


def neighbour_arrays(W_dec: Float[Tensor, "d_sae d_in"]) -> dict[str, ndarray]:
    """For each latent, the others whose decoder rows have the largest |cosine| with its own."""
    unit = torch.nn.functional.normalize(W_dec, dim=1)
    n = min(N_NEIGHBOURS, len(unit) - 1)
    latents, cosines = [], []
    for first in range(0, len(unit), ROWS_AT_ONCE):
        cosine = unit[first : first + ROWS_AT_ONCE] @ unit.T
        own = torch.arange(len(cosine), device=cosine.device)
        cosine[own, own + first] = 0
        nearest = cosine.abs().topk(n, dim=1).indices
        latents.append(nearest.int())
        cosines.append(cosine.gather(1, nearest).float())
    return {
        "neighbours/latents": torch.cat(latents).cpu().numpy(),
        "neighbours/cosine": torch.cat(cosines).cpu().numpy(),
    }
