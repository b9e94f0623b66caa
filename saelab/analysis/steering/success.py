"""Steering success as arXiv 2505.20063 measures it, and what a filter by score does to it.

A latent is steered at several strengths behind many prefixes; success is how many of the tokens
that it promises the model then says (Eq. 7), at the strength with the best ratio of success to
perplexity. The paper's claim: among latents of high output score, success is far higher.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from pydantic import Field
from torch import Tensor

from saelab.analysis.steering.dose import STRENGTHS
from saelab.analysis.steering.generate import Sampling, edits_for, generate, plain_log_probs
from saelab.analysis.steering.interventions import Intervention
from saelab.analysis.steering.records import SteeringScores
from saelab.analysis.steering.steerable import Steerable
from saelab.config import Config, UsageError
from saelab.console import progress
from saelab.evaluation.stream import corpus_of
from saelab.lm.protocol import LanguageModel
from saelab.training.run import Run

FACTORS = STRENGTHS[1:]
TOO_MUCH = 3.0
"""Factors with more promised tokens a text than this are degenerate and left out (the paper's)."""
THRESHOLDS = (1e-4, 1e-3, 0.01, 0.1, 0.5, 0.9)
SHARES = (0.4, 0.2)


class SuccessOptions(Config):
    """How success is measured; the defaults are the paper's protocol, on fewer prefixes."""

    n_latents: int = Field(default=100, gt=0)
    """Latents to steer, drawn at random among those that fire."""
    n_prefixes: int = Field(default=20, gt=0)
    """Beginnings of held-out contexts to continue (the paper: 50 fixed phrases)."""
    prefix_length: int = Field(default=8, gt=1)
    """Tokens of each."""
    n_tokens: int = Field(default=20, gt=0)
    """Tokens to generate."""
    temperature: float = Field(default=0.7, gt=0)
    """Of sampling."""
    stop: str = "."
    """A continuation counts up to the first of this token."""
    seed: int = 0
    """Decides the latents and the samples."""


@dataclass(frozen=True)
class LatentSuccess:
    """One latent at its best strength.

    Attributes:
        success: promised tokens a text, GenSucc@k (Eq. 7), k being the scores' lens.
        plain_success: the same count in the plain model's texts, from the same random numbers.
        perplexity: of the steered continuations under the plain model.
    """

    latent: int
    sign: int
    input: float | None
    output: float
    factor: float
    success: float
    plain_success: float
    perplexity: float


@dataclass(frozen=True)
class FilterRow:
    """The latents that a filter keeps.

    Attributes:
        score: which score is filtered by; "none" for all latents.
        threshold: the least score that is kept.
        share: for a filter that keeps the best of all latents, how many; thresholds mean little
            where most latents pass them.
        gain: success beyond the plain model's count.
        ratio: success over that of all latents.
    """

    score: str
    threshold: float | None
    share: float | None
    n: int
    success: float
    gain: float
    ratio: float


@dataclass(frozen=True)
class Success:
    """Every measured latent, and what filters make of them."""

    latents: list[LatentSuccess]
    filters: list[FilterRow]

    def values(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@torch.no_grad()
def steering_success(
    run: Run, lm: LanguageModel, scores: SteeringScores, options: SuccessOptions | None = None
) -> Success:
    """Steer random latents and see what they make the model say.

    Raises:
        UsageError: the run's text is gone or its contexts are shorter than the prefixes, the stop
            is not one token, or prefix and continuation exceed the model's context.
    """
    options = options or SuccessOptions()
    model = Steerable.of_run(run, lm)
    trial = _Trial(model, _prefixes(run, lm, options), _stop(lm, options.stop), options)
    drawn = _drawn(scores, options)
    found = []
    with progress("Steering success", len(drawn), "latents") as bar:
        unsteered = trial.continuations(())
        for row in drawn:
            found.append(_measure(trial, scores, row, unsteered))
            bar.advance(1)
    return Success(found, filter_table(found))


def count_promised(
    new: Int[Tensor, "text new"], promised: Int[Tensor, " k"], stop: int
) -> Int[Tensor, " text"]:
    """How many tokens of each text are promised ones, repeats included, up to `stop` (Eq. 7)."""
    return (torch.isin(new, promised) & before_stop(new, stop)).sum(dim=1)


def before_stop(new: Int[Tensor, "text new"], stop: int) -> Bool[Tensor, "text new"]:
    """The tokens of each text up to and with the first `stop`."""
    ended = (new == stop).cumsum(dim=1)
    return (ended == 0) | ((ended == 1) & (new == stop))


@dataclass(frozen=True)
class _Trial:
    """The prefixes and how they are continued."""

    model: Steerable
    prefixes: Int[Tensor, "prefix pos"]
    stop: int
    options: SuccessOptions

    def continuations(self, changes: Sequence[Intervention]) -> Int[Tensor, "text new"]:
        """Every prefix continued under each change, change by change; plain without any."""
        times, n = max(1, len(changes)), len(self.prefixes)
        prompts = self.prefixes.repeat(times, 1)
        repeated = [change for change in changes for _ in range(n)]
        edits = edits_for(self.model, repeated, prompts.shape[1])
        sampling = Sampling(
            n_tokens=self.options.n_tokens,
            temperature=self.options.temperature,
            seed=self.options.seed,
        )
        return generate(self.model.lm, prompts, sampling, edits, list(range(n)) * times)

    def perplexities(self, new: Int[Tensor, "text new"]) -> Float[Tensor, " change"]:
        """Of each change's texts under the plain model, up to their stops."""
        times = len(new) // len(self.prefixes)
        log_probs = plain_log_probs(self.model.lm, self.prefixes.repeat(times, 1), new)
        counted = before_stop(new, self.stop)
        sums = ((log_probs * counted).reshape(times, -1), counted.reshape(times, -1))
        return (-sums[0].sum(dim=1) / sums[1].sum(dim=1)).exp()


def _measure(
    trial: _Trial, scores: SteeringScores, row: int, unsteered: Int[Tensor, "text new"]
) -> LatentSuccess:
    latent, sign = int(scores.latent[row]), int(scores.sign[row])
    promised = torch.tensor(scores.lens[row], device=unsteered.device)
    changes = [Intervention(latents=(latent,), amount=sign * factor) for factor in FACTORS]
    new = trial.continuations(changes)
    counts = count_promised(new, promised, trial.stop).double().reshape(len(FACTORS), -1)
    success, perplexity = counts.mean(dim=1).cpu(), trial.perplexities(new).cpu()
    best = best_factor(success.numpy(), perplexity.double().numpy())
    before = count_promised(unsteered, promised, trial.stop).double().mean()
    known = not np.isnan(scores.input[row])
    return LatentSuccess(
        latent=latent,
        sign=sign,
        input=float(scores.input[row]) if known else None,
        output=float(scores.output[row]),
        factor=FACTORS[best],
        success=float(success[best]),
        plain_success=float(before),
        perplexity=float(perplexity[best]),
    )


def best_factor(success: Float[ndarray, " factor"], perplexity: Float[ndarray, " factor"]) -> int:
    """The factor of the best success for its perplexity, degenerate ones left out.

    Where every factor is degenerate it is the smallest.
    """
    ratio = np.where(success > TOO_MUCH, -np.inf, success / perplexity)
    return int(ratio.argmax())


def filter_table(latents: Sequence[LatentSuccess]) -> list[FilterRow]:
    """Mean success of all latents, and of those that filters on either score keep."""
    success = np.array([found.success for found in latents])
    gain = success - np.array([found.plain_success for found in latents])
    rows: list[tuple[str, float | None, float | None]] = [("none", None, None)]
    kept = [np.ones(len(latents), dtype=bool)]
    for score in ("output", "input"):
        values = np.array([getattr(found, score) for found in latents], dtype=np.float64)
        known = values[~np.isnan(values)]
        filters = [(t, None) for t in THRESHOLDS]
        filters += [(float(np.quantile(known, 1 - s)), s) for s in SHARES if len(known)]
        rows += [(score, threshold, share) for threshold, share in filters]
        kept += [values >= threshold for threshold, _ in filters]
    return [
        FilterRow(
            *row,
            n=int(which.sum()),
            success=float(success[which].mean()),
            gain=float(gain[which].mean()),
            ratio=float(success[which].mean() / success.mean()) if success.any() else 0.0,
        )
        for row, which in zip(rows, kept, strict=True)
        if which.any()
    ]


def _drawn(scores: SteeringScores, options: SuccessOptions) -> list[int]:
    """Random rows among those that fire."""
    fires = np.flatnonzero(scores.n_examples > 0)
    n = min(options.n_latents, len(fires))
    drawn = np.random.default_rng(options.seed).choice(fires, n, replace=False)
    return np.sort(drawn).tolist()


def _prefixes(run: Run, lm: LanguageModel, options: SuccessOptions) -> Int[Tensor, "prefix pos"]:
    corpus = corpus_of(run, lm, "held-out")
    n = options.n_prefixes if corpus.n_contexts is None else corpus.n_contexts
    tokens = corpus.read(0, n).tokens[:, : options.prefix_length]
    whole = tokens[(tokens >= 0).all(axis=1)][: options.n_prefixes]
    if tokens.shape[1] < options.prefix_length or not len(whole):
        raise UsageError(
            f"No held-out context has {options.prefix_length} tokens; lower the prefix length."
        )
    return torch.from_numpy(whole).long().to(lm.device)


def _stop(lm: LanguageModel, stop: str) -> int:
    ids = lm.tokenizer.encode(stop)
    if len(ids) != 1:
        raise UsageError(f"The stop {stop!r} is {len(ids)} tokens of {lm.info.name}; give one.")
    return ids[0]
