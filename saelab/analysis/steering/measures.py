"""The two scores as functions of tensors, and their options."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from numpy import ndarray
from pydantic import Field
from torch import Tensor

from saelab.analysis.feature_file import FeatureFile
from saelab.analysis.plans import steering_plan
from saelab.analysis.steering.edits import a_max, latent_edits
from saelab.analysis.steering.interventions import Intervention, position_mask
from saelab.analysis.steering.self_test import verify
from saelab.config import Config, UsageError
from saelab.console import progress
from saelab.host.host import Host
from saelab.lm.protocol import LanguageModel
from saelab.sae.decoder import dtype_of

PAPER_PROMPT = "In my experience,"
TINY_PROMPT = "today is monday and next comes tuesday ."
N_PEAKS = 5

Form = Literal["difference", "paper", "repository"]
Rows = tuple[Integer[ndarray, " row"], Integer[ndarray, " row"]]
"""The latent and the sign of every scored row."""


class ScoreOptions(Config):
    """How input and output scores are computed; the defaults are the paper's numbers."""

    prompt: str | None = None
    """Neutral prompt; default: "In my experience,", and for the tiny model, which does not know
    these words, "today is monday and next comes tuesday ."."""
    strength: float = Field(default=10.0, ge=0)
    """Strength of the addition, in units of the largest activation of any latent at the
    position."""
    n_lens: int = Field(default=20, gt=0)
    """Number of tokens that count: those that the decoder row raises most."""
    form: Form = "difference"
    """difference: error kept, P(steered) - P(plain), so that strength 0 scores 0; paper: Eqs. 6 and
    10 as printed, x_hat' alone instead of x; repository: as the authors' code, error kept and
    P(steered) alone."""
    min_examples: int = Field(default=10, gt=0)
    """Latents with fewer contexts in features.h5 get no input score (the paper: 20; its code:
    10)."""
    max_examples: int = Field(default=100, gt=0)
    """Largest number of contexts that count."""
    batch_size: int = Field(default=64, gt=0)
    """Latents per forward pass."""


def neutral_prompt(lm: LanguageModel) -> str:
    """A prompt that says little about what comes next."""
    return TINY_PROMPT if lm.info.name == "tiny" else PAPER_PROMPT


@dataclass(frozen=True)
class Confidence:
    """P of Eq. 9 and its parts."""

    rank: Int[Tensor, " n"]
    probability: Float[Tensor, " n"]
    value: Float[Tensor, " n"]


def confidence(probabilities: Float[Tensor, "n d_vocab"], lens: Int[Tensor, "n k"]) -> Confidence:
    """P = (1 - r / V) * p of the most likely lens token (arXiv 2505.20063, Eq. 9).

    r is the number of strictly more likely tokens, so ties and the vocabulary's order have no
    effect.
    """
    best = probabilities.gather(1, lens).amax(dim=1)
    rank = (probabilities > best[:, None]).sum(dim=1)
    return Confidence(rank, best, (1 - rank / probabilities.shape[1]) * best)


@dataclass(frozen=True)
class OutputScores:
    """S_out of each row, the steered rank and probability behind it, and the prompt's a_max."""

    score: Float[ndarray, " row"]
    rank: Integer[ndarray, " row"]
    probability: Float[ndarray, " row"]
    a_max: float


@torch.no_grad()
def output_scores(
    host: Host,
    tokens: Int[Tensor, " pos"],
    rows: Rows,
    lens: Int[Tensor, "row k"],
    options: ScoreOptions,
) -> OutputScores:
    """S_out (Eq. 10) of each latent's pole; a forward pass has one latent per batch entry.

    Raises:
        UsageError: no latent fires at the end of the prompt, or the SAE is not applied there.
        RuntimeError: the steered activations of the first batch are wrong.
    """
    out = host.lm.run(tokens[None], hooks=host.sites)
    plain = out.behind().logits()[0].float().softmax(-1)
    x = out.activations[host.reads]
    if not host.domain.covers(tokens[None], x, target=out.activations[host.writes])[0, -1]:
        raise UsageError(
            "The SAE is not applied at the last token of the prompt, since its training left such "
            "tokens out; choose another --prompt."
        )
    scale = float(a_max(host.sae.encode(x[:, -1].to(dtype_of(host.sae))))[0])
    if scale == 0:
        raise UsageError(
            "No latent fires at the last token of the prompt, so nothing would be added; choose "
            "another --prompt."
        )
    batch = tokens.expand(min(options.batch_size, len(rows[0])), -1)
    n_batches = len(rows[0]) / len(batch)
    steering_plan(host.lm, batch, n_batches, len(tokens)).announce()
    parts: list[tuple[Tensor, Confidence]] = []
    with progress("Output scores", len(rows[0]), "latents") as bar:
        for first in range(0, len(rows[0]), options.batch_size):
            part = slice(first, first + options.batch_size)
            changes = _changes(rows[0][part], rows[1][part], options)
            steered = _last_probabilities(host, tokens, changes, check=first == 0)
            found = confidence(steered, lens[part])
            clean = confidence(plain.expand_as(steered), lens[part]).value
            score = found.value if options.form == "repository" else found.value - clean
            parts.append((score, found))
            bar.advance(len(changes))
    return OutputScores(
        torch.cat([score for score, _ in parts]).cpu().numpy(),
        torch.cat([found.rank for _, found in parts]).cpu().numpy(),
        torch.cat([found.probability for _, found in parts]).cpu().numpy(),
        scale,
    )


def _changes(
    latents: Integer[ndarray, " n"], signs: Integer[ndarray, " n"], options: ScoreOptions
) -> list[Intervention]:
    error = "drop" if options.form == "paper" else "keep"
    return [
        Intervention(latents=(int(latent),), amount=int(sign) * options.strength, error=error)
        for latent, sign in zip(latents, signs, strict=True)
    ]


def _last_probabilities(
    host: Host, tokens: Int[Tensor, " pos"], changes: list[Intervention], *, check: bool
) -> Float[Tensor, "n d_vocab"]:
    batch = tokens.expand(len(changes), -1)
    mask = position_mask(host.lm, batch, "last", len(tokens), host.domain)
    if check:
        verify(host, batch, changes, mask)
    out = host.lm.run(batch, edits=latent_edits(host, changes, mask))
    return out.behind().logits().float().softmax(-1)


def input_scores(
    features: FeatureFile, rows: Rows, lens: Integer[ndarray, "row k"], options: ScoreOptions
) -> tuple[Float[ndarray, " row"], Integer[ndarray, " row"]]:
    """S_in (Eq. 8) of each row, NaN with too few examples; and the number of examples.

    features.h5 keeps, for every context, the token on which a latent is strongest, and of these the
    contexts where it is strongest: exactly the multiset T of the paper.
    """
    tokens, real = _fired_on(features, rows, options)
    hits = (tokens[:, :, None] == lens[:, None, :]).any(axis=2) & real
    n = real.sum(axis=1)
    share = hits.sum(axis=1) / np.maximum(n, 1)
    return np.where(n >= options.min_examples, share, np.nan), n


def peak_tokens(
    features: FeatureFile, rows: Rows, options: ScoreOptions
) -> Integer[ndarray, "row peak"]:
    """The commonest tokens on which each row fires most; -1 after the last."""
    tokens, real = _fired_on(features, rows, options)
    out = np.full((len(tokens), N_PEAKS), -1, dtype=np.int32)
    for row, (mine, here) in enumerate(zip(tokens, real, strict=True)):
        values, counts = np.unique(mine[here], return_counts=True)
        common = values[np.argsort(-counts, kind="stable")][:N_PEAKS]
        out[row, : len(common)] = common
    return out


def _fired_on(
    features: FeatureFile, rows: Rows, options: ScoreOptions
) -> tuple[Integer[ndarray, "row example"], Bool[ndarray, "row example"]]:
    """The token at the peak of each example, and which slots hold an example."""
    corpus = features["corpus/tokens"]
    latents, signs = rows
    parts = []
    for kind, sign in (("top", 1), ("negative", -1)):
        if kind in features.kinds:
            context = features[f"{kind}/context"][latents, : options.max_examples]
            position = features[f"{kind}/position"][latents, : options.max_examples]
            found = np.where(context >= 0, corpus[context, position], -1)
            parts.append(np.where((signs == sign)[:, None], found, -1))
    tokens = np.maximum.reduce(parts)
    return tokens, tokens >= 0
