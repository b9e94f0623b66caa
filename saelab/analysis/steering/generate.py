"""Steered and plain generation with the same random numbers, and figures of every token."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.analysis.plans import steering_plan
from saelab.analysis.steering.interventions import Intervention, position_mask
from saelab.analysis.steering.self_test import Effect, verify
from saelab.analysis.steering.writing import EditsFor, Sampling, edits_for, generate, plain
from saelab.host.host import Host
from saelab.lm.predictions import Predictions, exact
from saelab.lm.prompt import encode_prompt
from saelab.lm.protocol import LanguageModel


@dataclass(frozen=True)
class GeneratedToken:
    """One generated token.

    Attributes:
        text: its name.
        log_prob: log-probability under the model that generated it, at temperature 1.
        plain_log_prob: log-probability under the plain model, which reads the same text.
        kl: KL(plain || generating model) at this token, in nats.
    """

    text: str
    log_prob: float
    plain_log_prob: float
    kl: float


@dataclass(frozen=True)
class Continuation:
    """A model's continuation of a prompt.

    Attributes:
        pieces: the text that each token adds; see `TokenTable.pieces`.
        gap: the text between two pieces.
    """

    tokens: list[GeneratedToken]
    pieces: list[str]
    gap: str = ""

    @property
    def text(self) -> str:
        """The text of the tokens."""
        return self.gap.join(self.pieces)

    @property
    def perplexity(self) -> float:
        """Perplexity of the continuation under the plain model."""
        log_probs = torch.tensor([token.plain_log_prob for token in self.tokens])
        return float((-log_probs.mean()).exp())

    @property
    def repetition(self) -> float:
        """The share of repeated bigrams in the continuation."""
        return repetition([token.text for token in self.tokens])

    def values(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "text": self.text,
            "perplexity": self.perplexity,
            "repetition": self.repetition,
            "tokens": [asdict(token) for token in self.tokens],
        }


@dataclass(frozen=True)
class Comparison:
    """Plain and steered continuations of one prompt, sample by sample.

    Attributes:
        effect: the change's effect on the prompt's own activations.
    """

    prompt: str
    change: Intervention
    effect: Effect
    plain: list[Continuation]
    steered: list[Continuation]

    def values(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "prompt": self.prompt,
            "change": self.change.model_dump(mode="json"),
            "effect": asdict(self.effect),
            "plain": [continuation.values() for continuation in self.plain],
            "steered": [continuation.values() for continuation in self.steered],
        }


@torch.no_grad()
def steer(
    host: Host,
    change: Intervention,
    prompt: str,
    sampling: Sampling | None = None,
) -> Comparison:
    """Continue `prompt` with and without `change`.

    The prompt's activations are checked first, so that a failed change gives no result.

    Raises:
        UsageError: the prompt or the change does not fit the model.
        RuntimeError: the change did not take effect.
    """
    sampling = sampling or Sampling()
    tokens = encode_prompt(host.lm, prompt).expand(sampling.n_samples, -1)
    n_prompt = tokens.shape[1]
    mask = position_mask(host.lm, tokens, change.positions, n_prompt, host.domain)
    effect = verify(host, tokens, [change], mask)
    # A plain text and a steered one, generated token by token and then read.
    passes = 2.0 * (sampling.n_tokens + 3)
    steering_plan(host.lm, tokens, passes, n_prompt + sampling.n_tokens).announce()
    unsteered, steered = (continued(host, tokens, changes, sampling) for changes in ((), (change,)))
    return Comparison(prompt, change, effect, unsteered, steered)


@torch.no_grad()
def steer_at(
    host: Host,
    change: Intervention,
    prompt: str,
    strengths: Sequence[float | int],
    sampling: Sampling | None = None,
) -> list[Continuation]:
    """What `steer` says at each of `strengths`, its first sample, all in one batch.

    Raises:
        UsageError, RuntimeError: as `steer` does.
    """
    sampling = sampling or Sampling()
    tokens = encode_prompt(host.lm, prompt).expand(len(strengths), -1)
    changes = [change.with_amount(strength) for strength in strengths]
    mask = position_mask(host.lm, tokens, change.positions, tokens.shape[1], host.domain)
    verify(host, tokens, changes, mask)
    return continued(host, tokens, changes, sampling, [0] * len(strengths))


def continued(
    host: Host,
    tokens: Int[Tensor, "batch pos"],
    changes: Sequence[Intervention],
    sampling: Sampling,
    samples: Sequence[int] | None = None,
) -> list[Continuation]:
    """The continuation of each prompt under the changes (one for all, or one each).

    Without any, they are the plain model's. Rows of one number in `samples` share random numbers.
    """
    edits = edits_for(host, changes, tokens.shape[1])
    new = generate(host.lm, tokens, sampling, edits, samples)
    return _with_evidence(host.lm, tokens, new, edits)


def _with_evidence(
    lm: LanguageModel,
    prompts: Int[Tensor, "batch pos"],
    new: Int[Tensor, "batch new"],
    edits: EditsFor,
) -> list[Continuation]:
    """Log-probabilities and KL of every generated token, from one pass per model."""
    outputs = [_predictions(lm, prompts, new, chosen) for chosen in (edits, plain)]
    kl = []
    for part in outputs[0].pieces():
        found, base = (exact(out.logits(part)).log_softmax(-1) for out in outputs)
        kl.append((base.exp() * (base - found)).sum(dim=-1))
    columns = [*(out.log_probs(new.flatten()) for out in outputs), torch.cat(kl)]
    by_text = (column.reshape(new.shape).tolist() for column in columns)
    rows = zip(new.tolist(), *by_text, strict=True)
    table = lm.tokenizer.table
    return [
        Continuation(
            [
                GeneratedToken(table.name(i), *numbers)
                for i, *numbers in zip(ids, *row, strict=True)
            ],
            table.pieces(ids),
            table.gap,
        )
        for ids, *row in rows
    ]


def plain_log_probs(
    lm: LanguageModel, prompts: Int[Tensor, "batch pos"], new: Int[Tensor, "batch new"]
) -> Float[Tensor, "batch new"]:
    """The log-probability of every continuation's tokens under the plain model."""
    return _predictions(lm, prompts, new, plain).log_probs(new.flatten()).reshape(new.shape)


def _predictions(
    lm: LanguageModel,
    prompts: Int[Tensor, "batch pos"],
    new: Int[Tensor, "batch new"],
    edits: EditsFor,
) -> Predictions:
    """The predictions of every new token, text by text."""
    full = torch.cat([prompts.to(lm.device), new], dim=1)
    before = torch.zeros_like(full, dtype=torch.bool)
    before[:, prompts.shape[1] - 1 : -1] = True
    return lm.run(full, edits=edits(full)).at(before)


def repetition(tokens: Sequence[str | int]) -> float:
    """The share of bigrams that occurred before in the same text; 0 for fewer than two tokens."""
    bigrams = list(pairwise(tokens))
    return 1 - len(set(bigrams)) / len(bigrams) if bigrams else 0.0
