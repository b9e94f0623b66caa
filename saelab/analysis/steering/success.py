"""Steering success as in arXiv 2505.20063, and the effect of filtering by score.

A latent is steered at several strengths after many prefixes. Success is the number of tokens raised
by the latent that the model then writes (Eq. 7), at the strength with the best ratio of success to
perplexity. The paper claims far higher success among latents with high output scores.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from pydantic import Field
from torch import Tensor

from saelab import drawing
from saelab.analysis.steering.chance import N_DIRECTIONS, random_directions
from saelab.analysis.steering.dose import STRENGTHS
from saelab.analysis.steering.edits import with_maxima
from saelab.analysis.steering.interventions import Intervention
from saelab.analysis.steering.likelihood import log_likelihoods
from saelab.analysis.steering.records import SteeringScores
from saelab.analysis.steering.success_table import FilterRow, LatentSuccess, filter_table
from saelab.analysis.steering.writing import Sampling, edits_for, generate
from saelab.config import Config, UsageError
from saelab.console import progress
from saelab.host.host import Host
from saelab.host.text import corpus_of
from saelab.lm.protocol import LanguageModel
from saelab.training.run import Run

FACTORS = STRENGTHS[1:]
TOO_MUCH = 3.0
"""Factors with more raised tokens per text than this are degenerate and left out (the paper's
rule)."""
ROWS_AT_ONCE = 1024
"""Number of texts generated together."""


class SuccessOptions(Config):
    """How success is measured; the defaults are the paper's protocol, on fewer prefixes."""

    n_latents: int = Field(default=100, gt=0)
    """Number of latents to steer, drawn at random among active ones."""
    n_directions: int | None = Field(default=None, ge=0, le=N_DIRECTIONS)
    """Number of random directions to steer with in the same way, as a control; default: as many as
    latents, at most 256."""
    n_prefixes: int = Field(default=20, gt=0)
    """Beginnings of held-out contexts to continue (the paper: 50 fixed phrases)."""
    prefix_length: int = Field(default=8, gt=1)
    """Tokens per prefix."""
    n_tokens: int = Field(default=20, gt=0)
    """Tokens to generate."""
    temperature: float = Field(default=0.7, gt=0)
    """Sampling temperature."""
    stop: str = "."
    """A continuation counts up to the first occurrence of this token."""
    seed: int = 0
    """Decides the latents and the samples."""


@dataclass(frozen=True)
class Success:
    """Every measured latent, the effect of filters, and random directions as a control."""

    latents: list[LatentSuccess]
    filters: list[FilterRow]
    directions: list[LatentSuccess]

    def values(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    figure = drawing.figure


@torch.no_grad()
def steering_success(
    run: Run, lm: LanguageModel, scores: SteeringScores, options: SuccessOptions | None = None
) -> Success:
    """Steer random latents and measure their success.

    Raises:
        UsageError: the run's text is missing or its contexts are shorter than the prefixes, `stop`
            is not one token, or prefix and continuation exceed the model's context.
    """
    options = options or SuccessOptions()
    host = with_maxima(Host.of_run(run, lm))
    atoms, random = random_directions(host, scores)
    trial = _Trial(host, _prefixes(run, lm, options), _stop(lm, options.stop), options)
    latents = _steered(trial, scores, _drawn(scores, options), "latents")
    trial = replace(trial, atoms=atoms)
    n = min(len(latents), N_DIRECTIONS) if options.n_directions is None else options.n_directions
    directions = _steered(trial, random, list(range(n)), "directions")
    return Success(latents, filter_table(latents, random.output, directions), directions)


def count_promised(
    new: Int[Tensor, "text new"], promised: Int[Tensor, " k"], stop: int
) -> Int[Tensor, " text"]:
    """The number of raised tokens in each text, repeats included, up to `stop` (Eq. 7)."""
    return (torch.isin(new, promised) & before_stop(new, stop)).sum(dim=1)


def before_stop(new: Int[Tensor, "text new"], stop: int) -> Bool[Tensor, "text new"]:
    """The tokens of each text up to and including the first `stop`."""
    ended = (new == stop).cumsum(dim=1)
    return (ended == 0) | ((ended == 1) & (new == stop))


@dataclass(frozen=True)
class _Trial:
    """The prefixes and the options for continuing them."""

    host: Host
    prefixes: Int[Tensor, "prefix pos"]
    stop: int
    options: SuccessOptions
    atoms: Float[Tensor, "n d_out"] | None = None

    def continuations(self, changes: Sequence[Intervention]) -> Int[Tensor, "text new"]:
        """Every prefix continued under each change, change by change; plain without changes."""
        times, n = max(1, len(changes)), len(self.prefixes)
        prompts = self.prefixes.repeat(times, 1)
        repeated = [change for change in changes for _ in range(n)]
        edits = edits_for(self.host, repeated, prompts.shape[1], self.atoms)
        sampling = Sampling(
            n_tokens=self.options.n_tokens,
            temperature=self.options.temperature,
            seed=self.options.seed,
        )
        samples = list(range(n)) * times
        return generate(self.host.lm, prompts, sampling, edits, samples, stop=self.stop)

    def perplexities(
        self, new: Int[Tensor, "change prefix new"], wanted: Bool[Tensor, " change"]
    ) -> Float[Tensor, " change"]:
        """Plain-model perplexity of each wanted change's texts, up to `stop`; others infinite."""
        texts = new[wanted].flatten(0, 1)
        lengths = before_stop(texts, self.stop).sum(dim=1)
        prefixes = self.prefixes.repeat(int(wanted.sum()), 1)
        found = log_likelihoods(self.host.lm, prefixes, texts, lengths)
        sums = (part.reshape(-1, len(self.prefixes)).sum(dim=1) for part in (found, lengths))
        out = torch.full(wanted.shape, torch.inf, dtype=torch.float64, device=new.device)
        log_likelihood, n = sums
        out[wanted] = (-log_likelihood / n).exp()
        return out


def _steered(
    trial: _Trial, scores: SteeringScores, rows: list[int], what: str
) -> list[LatentSuccess]:
    """The success of these rows of the scores, as many at a time as fit into a batch."""
    found: list[LatentSuccess] = []
    at_once = max(1, ROWS_AT_ONCE // (len(FACTORS) * len(trial.prefixes)))
    with progress("Steering success", len(rows), what) as bar:
        unsteered = trial.continuations(())
        for first in range(0, len(rows), at_once):
            some = rows[first : first + at_once]
            found += _measure(trial, scores, some, unsteered)
            bar.advance(len(some))
    return found


def _measure(
    trial: _Trial, scores: SteeringScores, rows: list[int], unsteered: Int[Tensor, "text new"]
) -> list[LatentSuccess]:
    """The success of latents at all factors, generated together."""
    changes = [
        Intervention(latents=(int(scores.latent[row]),), amount=int(scores.sign[row]) * factor)
        for row in rows
        for factor in FACTORS
    ]
    new = trial.continuations(changes)
    by_latent = new.reshape(len(rows), len(FACTORS), len(trial.prefixes), -1)
    promised = torch.tensor(scores.lens[rows], device=new.device)
    counts = [
        count_promised(texts.flatten(0, 1), lens, trial.stop).double().reshape(len(FACTORS), -1)
        for texts, lens in zip(by_latent, promised, strict=True)
    ]
    success = torch.stack(counts).mean(dim=2)
    # Only these can be chosen, or the first if there is none; others need no perplexity.
    wanted = (success > 0) & (success <= TOO_MUCH)
    wanted[~wanted.any(dim=1), 0] = True
    perplexity = trial.perplexities(by_latent.flatten(0, 1), wanted.flatten())
    perplexity = perplexity.reshape(success.shape).cpu().numpy()
    before = [count_promised(unsteered, lens, trial.stop).double().mean() for lens in promised]
    return [
        _at_best(scores, row, success[i].cpu().numpy(), perplexity[i], float(before[i]))
        for i, row in enumerate(rows)
    ]


def _at_best(
    scores: SteeringScores,
    row: int,
    success: Float[ndarray, " factor"],
    perplexity: Float[ndarray, " factor"],
    before: float,
) -> LatentSuccess:
    best = best_factor(success, perplexity)
    known = not np.isnan(scores.input[row])
    return LatentSuccess(
        latent=int(scores.latent[row]),
        sign=int(scores.sign[row]),
        input=float(scores.input[row]) if known else None,
        output=float(scores.output[row]),
        factor=FACTORS[best],
        success=float(success[best]),
        plain_success=before,
        perplexity=float(perplexity[best]),
    )


def best_factor(success: Float[ndarray, " factor"], perplexity: Float[ndarray, " factor"]) -> int:
    """The factor with the best ratio of success to perplexity, without degenerate ones.

    If every factor is degenerate, the smallest one.
    """
    ratio = np.where(success > TOO_MUCH, -np.inf, success / perplexity)
    return int(ratio.argmax())


def _drawn(scores: SteeringScores, options: SuccessOptions) -> list[int]:
    """Random rows among those that fire."""
    fires = np.flatnonzero(scores.n_examples > 0)
    n = min(options.n_latents, len(fires))
    drawn = np.random.default_rng(options.seed).choice(fires, n, replace=False)
    return np.sort(drawn).tolist()


def _prefixes(run: Run, lm: LanguageModel, options: SuccessOptions) -> Int[Tensor, "prefix pos"]:
    corpus = corpus_of(run, lm, "held-out")
    size, whole = options.n_prefixes, np.empty((0, options.prefix_length), dtype=np.int32)
    first = 0
    while len(whole) < size and (last := corpus.available(first + size)) > first:
        tokens = corpus.read(first, last).tokens[:, : options.prefix_length]
        if tokens.shape[1] < options.prefix_length:
            break
        whole = np.concatenate([whole, tokens[(tokens >= 0).all(axis=1)]])[:size]
        first = last
    if not len(whole):
        raise UsageError(
            f"No held-out context has {options.prefix_length} tokens; lower the prefix length."
        )
    return torch.from_numpy(whole).long().to(lm.device)


def _stop(lm: LanguageModel, stop: str) -> int:
    ids = lm.tokenizer.encode(stop)
    if len(ids) != 1:
        raise UsageError(f"The stop {stop!r} is {len(ids)} tokens of {lm.info.name}; give one.")
    return ids[0]
