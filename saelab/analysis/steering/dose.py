"""Dose and response: the effect and the cost of a change over a range of strengths."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab import drawing
from saelab.analysis.steering.generate import plain_log_probs, repetition
from saelab.analysis.steering.interventions import Intervention, position_mask
from saelab.analysis.steering.lens import lens_tokens
from saelab.analysis.steering.self_test import verify
from saelab.analysis.steering.writing import EditsFor, Sampling, edits_for, generate, plain
from saelab.host.host import Host
from saelab.lm.prompt import encode_prompt, token_id
from saelab.lm.protocol import LanguageModel
from saelab.sae.decoder import atoms_of

STRENGTHS = (0.0, 0.2, 0.4, 0.8, 1.2, 1.6, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 20.0)
"""Zero, and the steering factors of arXiv 2505.20063."""


@dataclass(frozen=True)
class DoseResponse:
    """One number per strength and measure.

    Attributes:
        target: the token whose probability is measured.
        target_log_prob: log-probability of the target right after the prompt.
        kl: KL(plain || steered) right after the prompt, in nats.
        repetition: share of repeated bigrams in a continuation, averaged over samples.
        perplexity: perplexity of the continuations under the plain model, over all tokens.
        texts: the token texts of each strength's first sample; see `TokenTable.pieces`.
        gap: the text between two tokens.
    """

    prompt: str
    change: Intervention
    target: str
    strengths: tuple[float, ...]
    target_log_prob: tuple[float, ...]
    kl: tuple[float, ...]
    repetition: tuple[float, ...]
    perplexity: tuple[float, ...]
    texts: tuple[tuple[str, ...], ...]
    gap: str = ""

    @property
    def said(self) -> list[str]:
        """The text of each strength's first sample."""
        return [self.gap.join(pieces) for pieces in self.texts]

    def values(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "change": self.change.model_dump(mode="json")}

    figure = drawing.figure


@torch.no_grad()
def dose_response(
    host: Host,
    change: Intervention,
    prompt: str,
    strengths: Sequence[float | int] = STRENGTHS,
    *,
    target: str | None = None,
    sampling: Sampling | None = None,
) -> DoseResponse:
    """The effects of `change` at each of `strengths`, all in one batch.

    `target` is one token; by default the one that the changed latents raise most, in the direction
    of the first non-zero strength. Repetition and perplexity are of sampled continuations, by
    default four of 20 tokens at temperature 0.7.

    Raises:
        UsageError: the target is not one token, or the prompt or the change does not fit the model.
        RuntimeError: a change did not take effect.
    """
    sampling = sampling or Sampling(temperature=0.7, n_samples=4)
    n_samples = sampling.n_samples
    lm, tokens = host.lm, encode_prompt(host.lm, prompt)
    target_id = _target(host, change, strengths, target)
    changes = [change.with_amount(s) for s in strengths]
    batch = tokens.expand(len(strengths), -1)
    mask = position_mask(lm, batch, change.positions, len(tokens), host.domain)
    verify(host, batch, changes, mask)
    steered = _next_log_probs(lm, batch, edits_for(host, changes, len(tokens)))
    base = _next_log_probs(lm, tokens[None], plain)
    rows, samples = np.divmod(np.arange(len(strengths) * n_samples), n_samples)
    repeated = edits_for(host, [changes[row] for row in rows], len(tokens))
    prompts = tokens.expand(len(rows), -1)
    new = generate(lm, prompts, sampling, repeated, samples.tolist())
    log_probs = plain_log_probs(lm, prompts, new)
    new, log_probs = (part.reshape(len(strengths), n_samples, -1) for part in (new, log_probs))
    return DoseResponse(
        prompt=prompt,
        change=change,
        target=lm.tokenizer.token(target_id),
        strengths=tuple(float(s) for s in strengths),
        target_log_prob=tuple(steered[:, target_id].tolist()),
        kl=tuple((base.exp() * (base - steered)).sum(dim=1).tolist()),
        repetition=tuple(float(np.mean([repetition(s) for s in part])) for part in new.tolist()),
        perplexity=tuple((-log_probs.mean(dim=(1, 2))).exp().tolist()),
        texts=tuple(tuple(lm.tokenizer.table.pieces(part[0])) for part in new.tolist()),
        gap=lm.tokenizer.table.gap,
    )


def _next_log_probs(
    lm: LanguageModel, tokens: Int[Tensor, "batch pos"], edits: EditsFor
) -> Float[Tensor, "batch d_vocab"]:
    out = lm.run(tokens, edits=edits(tokens))
    return out.behind().logits().float().log_softmax(-1)


def _target(
    host: Host, change: Intervention, strengths: Sequence[float | int], target: str | None
) -> int:
    """The token id of `target`, or of the token that the change raises most."""
    if target is not None:
        return token_id(host.lm, target)
    sign = next((1 if s > 0 else -1 for s in strengths if s), 1)
    direction = sign * atoms_of(host.sae, list(change.latents)).sum(dim=0, keepdim=True)
    return int(lens_tokens(host.lm, host.writes, direction, 1))
