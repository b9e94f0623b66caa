"""One row for each text: activations and codes of its last token, or their mean over its tokens."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from saelab.activations.corpus import PADDING
from saelab.activations.forward import model_input, row_mask
from saelab.config import UsageError
from saelab.console import progress
from saelab.evaluation.plan import AT_REST
from saelab.evaluation.rows import Rows, active_entries
from saelab.evaluation.tasks.data import Drawn
from saelab.evaluation.tasks.options import Cost, Rules
from saelab.host.host import Host
from saelab.lm.batches import encode_batch
from saelab.lm.cost import contexts_at_once, forward_bytes
from saelab.lm.protocol import LanguageModel
from saelab.resources import Plan
from saelab.types import SparseCodes

Prompt = Int[ndarray, " token"]


@dataclass
class Reader:
    """Reads texts with a model and an SAE, and counts what it takes.

    Attributes:
        most: texts per forward pass, at most; None: as many as fit, up to 32.
        n_tokens: tokens read so far.
    """

    host: Host
    most: int | None = None
    n_tokens: int = 0

    @contextmanager
    def measured(self, costs: list[Cost]) -> Iterator[None]:
        """Appends what the body takes."""
        started, before = time.perf_counter(), self.n_tokens
        yield
        seconds = time.perf_counter() - started
        costs.append(Cost(seconds, peak_memory(self.host.lm.device), self.n_tokens - before))

    def rows(self, drawn: Drawn, rules: Rules, title: str) -> Rows:
        """One row for each drawn text; `labels` are its group, one column a group.

        Raises:
            UsageError: a text has no token that the SAE applies to.
        """
        prompts = prompts_of(self.host.lm, drawn.texts, rules)
        rows = self.pooled(prompts, rules.pool, title)
        groups = torch.nn.functional.one_hot(drawn.group).bool()
        return Rows(rows.x, rows.codes, rows.token, drawn.fit, groups, (), {}, rows.target)

    @torch.no_grad()
    def pooled(self, prompts: Sequence[Prompt], pool: Literal["mean", "last"], title: str) -> Rows:
        """One row for each prompt, on the CPU; `token` is its last one, `fit` is all true."""
        longest = max(map(len, prompts))
        n = self.most or contexts_at_once(self.host.lm, longest)
        self._plan(title, n, longest, len(prompts)).announce()
        parts = _Parts(len(prompts), self.host.sae.d_sae)
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        with progress(title, sum(map(len, prompts)), "tokens") as bar:
            while order:
                batch = order[: max(1, n * longest // len(prompts[order[0]]))]
                order = order[len(batch) :]
                n_read = self._read(batch, [prompts[i] for i in batch], pool, parts)
                bar.advance(n_read)
                self.n_tokens += n_read
        last = torch.tensor([int(prompt[-1]) for prompt in prompts])
        return parts.rows(last)

    def _read(self, batch: list[int], prompts: list[Prompt], pool: str, parts: "_Parts") -> int:
        host, lm = self.host, self.host.lm
        tokens = np.full((len(prompts), max(map(len, prompts))), PADDING, dtype=np.int64)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt)] = prompt
        found = lm.capture(model_input(tokens).to(lm.device), host.sites)
        x, *targets = (found[name] for name in host.sites)
        mask = torch.from_numpy(row_mask(lm, tokens)).to(x.device)
        mask[:, : host.domain.first_position] = False
        mask &= host.domain.within(x, *targets)
        mask = _last(mask) if pool == "last" else mask
        text = torch.tensor(batch, device=x.device)[mask.nonzero()[:, 0]]
        read, target = x[mask].float(), targets[0][mask].float() if targets else None
        parts.add(text, read, target, host.sae.encode_for(read, target))
        return sum(map(len, prompts))

    def _plan(self, title: str, n: int, length: int, n_texts: int) -> Plan:
        lm, sae = self.host.lm, self.host.sae
        rows = 4 * n_texts * (sae.d_in + sae.d_out)
        passes = forward_bytes(lm, n, length) + 3 * 4 * n * length * sae.d_sae
        return Plan(title, lm.device, passes + rows + AT_REST, "lower --batch-size or --length")


class _Parts:
    """Sums over the tokens of each text."""

    def __init__(self, n: int, d_sae: int) -> None:
        self.n, self.d_sae = n, d_sae
        self.count = torch.zeros(n, dtype=torch.long)
        self.x: Tensor | None = None
        self.target: Tensor | None = None
        self.entries: list[tuple[Tensor, Tensor]] = []

    def add(
        self,
        text: Int[Tensor, " row"],
        x: Float[Tensor, "row d_in"],
        target: Float[Tensor, "row d_out"] | None,
        codes: SparseCodes,
    ) -> None:
        """Add the rows of some texts, all of a text at once."""
        self.count += torch.bincount(text.cpu(), minlength=self.n)
        self.x = _summed(self.x, self.n, text, x)
        self.target = None if target is None else _summed(self.target, self.n, text, target)
        row, latent, value = active_entries(codes)
        place, which = (text[row] * self.d_sae + latent).unique(return_inverse=True)
        sums = torch.zeros(len(place), dtype=torch.float64, device=value.device)
        sums.index_add_(0, which, value.double())
        self.entries.append((place.cpu(), sums.cpu()))

    def rows(self, token: Int[Tensor, " text"]) -> Rows:
        """The means."""
        if not bool(self.count.all()):
            i = int((self.count == 0).nonzero()[0])
            raise UsageError(
                f"Text {i + 1} of those drawn has no token that the SAE applies to; leave such "
                "texts out."
            )
        place = torch.cat([place for place, _ in self.entries])
        order = place.argsort()
        place, value = place[order], torch.cat([sums for _, sums in self.entries])[order]
        text = place // self.d_sae
        starts = torch.searchsorted(text, torch.arange(self.n))
        values = (value / self.count[text]).float()
        codes = SparseCodes(values, place % self.d_sae, self.d_sae, starts)
        assert self.x is not None
        over = self.count[:, None]
        x = (self.x / over).float()
        target = None if self.target is None else (self.target / over).float()
        return Rows(x, codes, token, torch.ones(self.n, dtype=torch.bool), target=target)


def _summed(
    sums: Tensor | None, n: int, text: Int[Tensor, " row"], x: Float[Tensor, "row d"]
) -> Float[Tensor, "text d"]:
    sums = torch.zeros(n, x.shape[1], dtype=torch.float64) if sums is None else sums
    return sums.index_add_(0, text.cpu(), x.double().cpu())


def _last(mask: Bool[Tensor, "text pos"]) -> Bool[Tensor, "text pos"]:
    """The last position of each text where `mask` holds."""
    later = mask.flip(1).long().cumsum(1).flip(1)
    return mask & (later == 1)


def prompts_of(lm: LanguageModel, texts: Sequence[str], rules: Rules) -> list[Prompt]:
    """The tokens of each text, after <bos> if the model has one, cut to the rules' length.

    Raises:
        UsageError: the model reads fewer tokens than that.
    """
    if rules.length > lm.info.n_ctx:
        rules = rules._replace(length=lm.info.n_ctx)
    bos = [] if lm.info.bos_token_id is None else [lm.info.bos_token_id]
    room = rules.length - len(bos)
    found = []
    for ids in encode_batch(lm.tokenizer, texts):
        kept = ids[:room] if rules.keep == "start" else ids[-room:]
        found.append(np.concatenate([bos, kept]).astype(np.int64))
    return found


def peak_memory(device: torch.device) -> int:
    """The largest memory of this process so far, in bytes; on a GPU, that on the GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
