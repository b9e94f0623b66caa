"""Generation, steered beside plain, with the same random numbers and every token's evidence."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from saelab.analysis.steering.interventions import Intervention, encode_prompt, position_mask
from saelab.analysis.steering.self_test import Effect, verify
from saelab.analysis.steering.steerable import Steerable
from saelab.config import Config, UsageError
from saelab.lm.protocol import Edit, LanguageModel

EditsFor = Callable[[Tensor], Mapping[str, Edit]]
"""The edits for contexts `[batch pos]`, which grow as tokens are generated."""


class Sampling(Config):
    """How continuations are drawn."""

    n_tokens: int = Field(default=20, gt=0)
    """Tokens to generate."""
    temperature: float = Field(default=0.0, ge=0)
    """0 takes the likeliest token; arXiv 2505.20063 samples at 0.7."""
    n_samples: int = Field(default=1, gt=0)
    """Continuations of each prompt."""
    seed: int = 0
    """Decides the samples. Steered and plain text use the same random numbers, so what differs
    between them is the steering's doing."""


@dataclass(frozen=True)
class GeneratedToken:
    """One generated token.

    Attributes:
        log_prob: under the model that generated it, at temperature 1.
        plain_log_prob: under the plain model reading the same text.
        kl: KL(plain || generating model) of the distribution it was drawn from, in nats.
    """

    text: str
    log_prob: float
    plain_log_prob: float
    kl: float


@dataclass(frozen=True)
class Continuation:
    """What a model said after a prompt."""

    tokens: list[GeneratedToken]

    @property
    def text(self) -> str:
        """The tokens in a row."""
        return join_tokens([token.text for token in self.tokens])

    @property
    def perplexity(self) -> float:
        """Of the continuation, under the plain model."""
        log_probs = torch.tensor([token.plain_log_prob for token in self.tokens])
        return float((-log_probs.mean()).exp())

    @property
    def repetition(self) -> float:
        """The share of its bigrams that it has had before."""
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
        effect: what the change did to the prompt's own activations.
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
    model: Steerable,
    change: Intervention,
    prompt: str,
    sampling: Sampling | None = None,
) -> Comparison:
    """Continue `prompt` with and without `change`.

    The prompt's activations are checked first, so that no result comes of a change that failed.

    Raises:
        UsageError: the prompt or the change does not fit the model.
        RuntimeError: the change did not take effect.
    """
    sampling = sampling or Sampling()
    tokens = encode_prompt(model.lm, prompt).expand(sampling.n_samples, -1)
    n_prompt = tokens.shape[1]
    mask = position_mask(model.lm, tokens, change.positions, n_prompt)
    effect = verify(model, tokens, [change], mask)
    unsteered, steered = (
        _with_evidence(model.lm, tokens, generate(model.lm, tokens, sampling, edits), edits)
        for edits in (plain, edits_for(model, [change], n_prompt))
    )
    return Comparison(prompt, change, effect, unsteered, steered)


def plain(_: Tensor) -> Mapping[str, Edit]:
    """No edits."""
    return {}


def edits_for(model: Steerable, changes: Sequence[Intervention], n_prompt: int) -> EditsFor:
    """The edits that make `changes` (one for all contexts, or one each) as contexts grow."""
    if not changes:
        return plain

    def edits(contexts: Tensor) -> Mapping[str, Edit]:
        mask = position_mask(model.lm, contexts, changes[0].positions, n_prompt)
        return model.edits(changes, mask)

    return edits


@torch.no_grad()
def generate(
    lm: LanguageModel,
    prompts: Int[Tensor, "batch pos"],
    sampling: Sampling,
    edits: EditsFor = plain,
    samples: Sequence[int] | None = None,
) -> Int[Tensor, "batch new"]:
    """The tokens that follow each prompt.

    Rows with the same number in `samples` (default: the row's own) share their random numbers,
    whatever the batch; `n_samples` is not read. Nothing is cached between tokens: each costs a
    forward pass of its context.

    Raises:
        UsageError: prompt and continuation are longer than the model's context.
    """
    n_prompt = prompts.shape[1]
    if n_prompt + sampling.n_tokens > lm.info.n_ctx:
        raise UsageError(
            f"{n_prompt} tokens of prompt and {sampling.n_tokens} more exceed the {lm.info.n_ctx} "
            f"that {lm.info.name} reads; lower --n-tokens or shorten the prompt."
        )
    numbers = list(range(len(prompts))) if samples is None else list(samples)
    noise = _Noise(sampling.seed, numbers, lm.info.d_vocab)
    contexts = prompts.to(lm.device)
    for _ in range(sampling.n_tokens):
        logits = lm.logits(contexts, edits(contexts))[:, -1].float()
        if sampling.temperature:
            # The argmax of logits plus Gumbel noise is a sample of their softmax.
            logits = logits / sampling.temperature + noise.next().to(logits)
        contexts = torch.cat([contexts, logits.argmax(dim=1, keepdim=True)], dim=1)
    return contexts[:, n_prompt:]


class _Noise:
    """Gumbel noise of every row's sample, step by step."""

    def __init__(self, seed: int, samples: list[int], d_vocab: int) -> None:
        # Odd multipliers keep neighbouring seeds and samples apart.
        self.generators = {
            number: torch.Generator().manual_seed(
                (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9) % 2**63
            )
            for number in sorted(set(samples))
        }
        self.samples = samples
        self.d_vocab = d_vocab

    def next(self) -> Float[Tensor, "batch d_vocab"]:
        drawn = {
            number: -torch.empty(self.d_vocab).exponential_(generator=generator).log()
            for number, generator in self.generators.items()
        }
        return torch.stack([drawn[number] for number in self.samples])


def _with_evidence(
    lm: LanguageModel,
    prompts: Int[Tensor, "batch pos"],
    new: Int[Tensor, "batch new"],
    edits: EditsFor,
) -> list[Continuation]:
    """Log-probabilities and KL of every generated token, from one pass of each model."""
    found, base = (_log_probs(lm, prompts, new, chosen) for chosen in (edits, plain))
    columns = [part.gather(2, new[:, :, None])[:, :, 0] for part in (found, base)]
    columns.append((base.exp() * (base - found)).sum(dim=-1))
    rows = zip(new.tolist(), *(column.tolist() for column in columns), strict=True)
    token = lm.tokenizer.token
    return [
        Continuation([GeneratedToken(token(i), *numbers) for i, *numbers in zip(*row, strict=True)])
        for row in rows
    ]


def plain_log_probs(
    lm: LanguageModel, prompts: Int[Tensor, "batch pos"], new: Int[Tensor, "batch new"]
) -> Float[Tensor, "batch new"]:
    """The log-probability of every continuation's tokens under the plain model."""
    return _log_probs(lm, prompts, new, plain).gather(2, new[:, :, None])[:, :, 0]


def _log_probs(
    lm: LanguageModel,
    prompts: Int[Tensor, "batch pos"],
    new: Int[Tensor, "batch new"],
    edits: EditsFor,
) -> Float[Tensor, "batch new d_vocab"]:
    full = torch.cat([prompts.to(lm.device), new], dim=1)
    logits = lm.logits(full, edits(full))[:, prompts.shape[1] - 1 : -1]
    return logits.float().log_softmax(-1)


def repetition(tokens: Sequence[str | int]) -> float:
    """The share of bigrams that occurred before in the same text; 0 for fewer than two."""
    bigrams = list(pairwise(tokens))
    return 1 - len(set(bigrams)) / len(bigrams) if bigrams else 0.0


def join_tokens(tokens: Sequence[str]) -> str:
    """Tokens as text; where none carries a space (a word tokenizer), spaces go between them."""
    spaced = any(token != token.strip() for token in tokens)
    return "".join(tokens) if spaced else " ".join(tokens)
