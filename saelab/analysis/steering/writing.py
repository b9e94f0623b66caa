"""Text generation, with or without edits of activations, token by token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from saelab.analysis.steering.edits import latent_edits
from saelab.analysis.steering.interventions import Intervention, position_mask
from saelab.config import Config, UsageError
from saelab.host.host import Host
from saelab.lm.predictions import Predictions
from saelab.lm.protocol import Edit, LanguageModel
from saelab.lm.reading import Past, ReadsOn

LEAST_ENDED = 0.15
"""Ended rows stay in the batch until they reach this share, since removing them copies the rest."""


class Sampling(Config):
    """How continuations are sampled."""

    n_tokens: int = Field(default=20, gt=0)
    """Tokens to generate."""
    temperature: float = Field(default=0.0, ge=0)
    """0 takes the most likely token; arXiv 2505.20063 samples at 0.7."""
    n_samples: int = Field(default=1, gt=0)
    """Number of continuations of each prompt."""
    seed: int = 0
    """Decides the samples. Steered and plain text use the same random numbers, so all differences
    come from steering."""


@dataclass(frozen=True)
class EditsFor:
    """The edits that make `changes` (one for all contexts, or one each) while contexts grow.

    Attributes:
        model: the model; None if nothing is edited.
        n_prompt: number of prompt tokens in each context.
        atoms: see `latent_edits`.
    """

    host: Host | None = None
    changes: tuple[Intervention, ...] = ()
    n_prompt: int = 0
    atoms: Float[Tensor, "n d_out"] | None = None

    def __call__(self, contexts: Int[Tensor, "batch pos"]) -> Mapping[str, Edit]:
        """The edits of whole contexts."""
        return self.tail(contexts, 0, None)

    def tail(
        self, contexts: Int[Tensor, "batch pos"], first: int, rows: Int[Tensor, " batch"] | None
    ) -> Mapping[str, Edit]:
        """The edits of the positions from `first` on, for those rows of the batch (None: all)."""
        if self.host is None:
            return {}
        changes = list(self.changes)
        if len(changes) > 1 and rows is not None:
            changes = [changes[row] for row in rows.tolist()]
        mask = position_mask(
            self.host.lm, contexts, changes[0].positions, self.n_prompt, self.host.domain
        )
        return latent_edits(self.host, changes, mask[:, first:], self.atoms)

    @property
    def untouched(self) -> int | None:
        """The number of tokens at the prompt's start that are never edited; None for all."""
        if self.host is None:
            return None
        positions = self.changes[0].positions
        if isinstance(positions, int):
            return positions
        return self.n_prompt - 1 if positions == "last" else 0


plain = EditsFor()
"""No edits."""


def edits_for(
    host: Host,
    changes: Sequence[Intervention],
    n_prompt: int,
    atoms: Float[Tensor, "n d_out"] | None = None,
) -> EditsFor:
    """The edits that make `changes` (one for all contexts, or one each) as contexts grow."""
    return EditsFor(host, tuple(changes), n_prompt, atoms) if changes else plain


@torch.no_grad()
def generate(
    lm: LanguageModel,
    prompts: Int[Tensor, "batch pos"],
    sampling: Sampling,
    edits: EditsFor = plain,
    samples: Sequence[int] | None = None,
    *,
    stop: int | None = None,
) -> Int[Tensor, "batch new"]:
    """The tokens generated after each prompt; a text ends at `stop`.

    Rows with the same number in `samples` (default: the row's own) share their random numbers in
    any batch; `n_samples` is ignored. Each token is computed once if the model can continue
    reading, otherwise it costs a forward pass of its context. Equal prompts are read once.

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
    texts = _Texts(lm, prompts.to(lm.device), edits)
    new = torch.full((len(prompts), sampling.n_tokens), -1 if stop is None else stop)
    new = new.to(lm.device)
    for step in range(sampling.n_tokens):
        out = texts.next()
        drawn = noise.next() if sampling.temperature else None
        parts = []
        for part in out.pieces():
            logits = out.logits(part).float()
            if drawn is not None:
                # The argmax of logits plus Gumbel noise is a sample of their softmax.
                chance = drawn[noise.place[texts.rows[part].cpu()]]
                logits = logits / sampling.temperature + chance.to(logits)
            parts.append(logits.argmax(dim=1))
        said = torch.cat(parts)
        if stop is not None:
            said = said.masked_fill(texts.ended, stop)
        new[texts.rows, step] = said
        texts.append(said)
        if stop is not None and not texts.keep(said != stop):
            break
    return new


class _Texts:
    """Contexts that grow, and the model's keys and values for them."""

    def __init__(
        self, lm: LanguageModel, contexts: Int[Tensor, "batch pos"], edits: EditsFor
    ) -> None:
        self.lm, self.edits, self.contexts = lm, edits, contexts
        self.rows = torch.arange(len(contexts), device=contexts.device)
        self.ended = torch.zeros(len(contexts), dtype=torch.bool, device=contexts.device)
        self.past: Past | None = None
        self.n_read = 0
        self.reader = lm if isinstance(lm, ReadsOn) and lm.reads_on else None
        if self.reader is not None:
            untouched = contexts.shape[1] if edits.untouched is None else edits.untouched
            self.past, self.n_read = read_shared(self.reader, contexts, untouched)

    def next(self) -> Predictions:
        """The logits of the token after each context."""
        if self.reader is None:
            edits = self.edits.tail(self.contexts, 0, self.rows)
            return self.lm.run(self.contexts, edits=edits).behind()
        edits = self.edits.tail(self.contexts, self.n_read, self.rows)
        unread = self.contexts[:, self.n_read :]
        out, self.past = self.reader.read_on(unread, self.past, edits)
        self.n_read = self.contexts.shape[1]
        return out.behind()

    def append(self, said: Int[Tensor, " batch"]) -> None:
        """Append one token to each context."""
        self.contexts = torch.cat([self.contexts, said[:, None]], dim=1)

    def keep(self, going: Bool[Tensor, " batch"]) -> bool:
        """Remove rows that have ended, now or later; returns whether any is left."""
        self.ended |= ~going
        if self.ended.all():
            return False
        if self.ended.float().mean() >= LEAST_ENDED:
            which = (~self.ended).nonzero()[:, 0]
            self.rows, self.contexts = self.rows[which], self.contexts[which]
            self.ended = self.ended[which]
            self.past = None if self.past is None else self.past.rows(which)
        return True


def read_shared(
    reader: ReadsOn, contexts: Int[Tensor, "batch pos"], n: int
) -> tuple[Past | None, int]:
    """The plain model's past of each context's first `n` tokens, and the number read.

    Equal beginnings are read once. The last token is left out, since its logits are needed later.
    """
    n = min(n, contexts.shape[1] - 1)
    if n <= 0:
        return None, 0
    different, which = contexts[:, :n].unique(dim=0, return_inverse=True)
    return reader.read_on(different, None)[1].rows(which), n


class _Noise:
    """Gumbel noise of every row's sample, step by step."""

    def __init__(self, seed: int, samples: list[int], d_vocab: int) -> None:
        different = sorted(set(samples))
        # Odd multipliers separate neighbouring seeds and samples.
        self.generators = [
            torch.Generator().manual_seed(
                (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9) % 2**63
            )
            for number in different
        ]
        place = {number: index for index, number in enumerate(different)}
        self.place = torch.tensor([place[number] for number in samples])
        self.d_vocab = d_vocab

    def next(self) -> Float[Tensor, "sample d_vocab"]:
        """The noise of each different sample; `place` gives each row's sample."""
        drawn = [
            -torch.empty(self.d_vocab).exponential_(generator=generator).log()
            for generator in self.generators
        ]
        return torch.stack(drawn)
