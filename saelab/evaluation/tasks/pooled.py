"""One row for each text: activations and codes of its last token, or their mean over its tokens."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy import ndarray
from torch import Tensor

from saelab.activations.corpus import PADDING
from saelab.activations.forward import model_input, row_mask
from saelab.config import UsageError
from saelab.console import note, progress
from saelab.evaluation.options import CONTEXTS
from saelab.evaluation.plan import AT_REST
from saelab.evaluation.rows import Rows, RowSample
from saelab.evaluation.tasks.data import Drawn, LabelledTexts, draw
from saelab.evaluation.tasks.options import Cost, TaskRules
from saelab.evaluation.tasks.text_means import TextMeans
from saelab.host.host import Host
from saelab.host.splice import keep
from saelab.lm.batches import encode_batch
from saelab.lm.cost import contexts_at_once, forward_bytes
from saelab.lm.protocol import LanguageModel
from saelab.lm.reading import ReadsOn
from saelab.resources import Plan, batch_budget
from saelab.sites import Site

POSITIONS = 4096
"""Positions of a forward pass, if no number of texts was given."""

Prompt = Int[ndarray, "_"]


@dataclass
class TextReader:
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

    def draw(
        self,
        data: LabelledTexts,
        groups: tuple[Sequence[str], Sequence[int]],
        rules: TaskRules,
        seed: int,
    ) -> tuple[Rows, Drawn]:
        """The rows of texts drawn from a data set: the groups' names, and the group of each text.

        Raises:
            UsageError: as of `draw` and `rows`.
        """
        names, group = groups
        sizes = {"n_train": rules.n_train, "n_test": rules.n_test, "seed": seed}
        try:
            drawn = draw(data.texts, group, names, **sizes)
        except UsageError as error:
            raise UsageError(f"{data.name}: {error}") from None
        return self.rows(drawn, rules, data.name)

    def rows(self, drawn: Drawn, rules: TaskRules, title: str) -> tuple[Rows, Drawn]:
        """One row for each drawn text that the SAE applies to, and these texts.

        Texts of nothing but tokens that training left out (special tokens, massive activations of
        first tokens) have no row; a note says how many.

        Raises:
            UsageError: no text is left.
        """
        prompts = prompts_of(self.host.lm, drawn.texts, rules)
        rows, kept = self.pooled(prompts, rules.pool, title)
        if n := int((~kept).sum()):
            note(f"{title}: {n} of {len(kept)} texts have no token that the SAE applies to.")
        texts = [text for text, has_row in zip(drawn.texts, kept.tolist(), strict=True) if has_row]
        left = Drawn(texts, drawn.group[kept], drawn.fit[kept])
        return replace(rows, fit=left.fit), left

    @torch.no_grad()
    def pooled(
        self, prompts: Sequence[Prompt], pool: Literal["mean", "last"], title: str
    ) -> tuple[Rows, Bool[Tensor, " text"]]:
        """One row for each prompt with a token that the SAE applies to, and which these are.

        The rows are on the CPU; `token` is a prompt's last one, `fit` is all true.
        """
        longest = max(map(len, prompts))
        n = self.at_once(longest)
        self._plan(title, n, longest, len(prompts)).announce()
        parts = TextMeans(len(prompts), self.host.sae.d_sae)
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        with progress(title, sum(map(len, prompts)), "tokens") as bar:
            while order:
                batch = order[: max(1, n * longest // len(prompts[order[0]]))]
                order = order[len(batch) :]
                n_read = self._read(batch, [prompts[i] for i in batch], pool, parts)
                bar.advance(n_read)
                self.n_tokens += n_read
        last = torch.tensor([int(prompt[-1]) for prompt in prompts])
        return parts.rows(last), parts.count > 0

    def _read(self, batch: list[int], prompts: list[Prompt], pool: str, parts: TextMeans) -> int:
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
        if len(read):
            parts.add(text, read, target, host.sae.encode_for(read, target))
        return sum(map(len, prompts))

    @torch.no_grad()
    def ends(self, prefixes: Sequence[Prompt], ends: Sequence[Prompt], title: str) -> Rows:
        """The rows of single tokens, each behind a prefix: `ends[i]` are those of `prefixes[i]`.

        Tokens to which the SAE does not apply have no row. A prefix is read once, if the model can
        read on.
        """
        length = 1 + max(map(len, prefixes))
        n = self._words_at_once(length) if self._reads_on else self.at_once(length)
        # Words that are read on take one position each.
        n_whole = n // length if self._reads_on else n
        self._plan(title, max(1, n_whole), length, sum(map(len, ends))).announce()
        sample = RowSample()
        with progress(title, sum(map(len, ends)), "words") as bar:
            for prefix, tokens in zip(prefixes, ends, strict=True):
                for some in torch.from_numpy(tokens).split(n) if len(tokens) else ():
                    if (rows := self._end_rows(torch.from_numpy(prefix), some)) is not None:
                        sample.add(rows)
                    bar.advance(len(some))
        if not sample.n_rows:
            raise UsageError(f"{self.host.name} applies to no word of the vocabulary.")
        return sample.rows()

    def _end_rows(self, prefix: Int[Tensor, " pos"], tokens: Int[Tensor, " n"]) -> Rows | None:
        host, lm = self.host, self.host.lm
        prefix, tokens = prefix.to(lm.device), tokens.to(lm.device)
        if self._reads_on and isinstance(lm, ReadsOn) and len(prefix):
            seen: dict[str, list[Tensor]] = {site: [] for site in host.sites}
            past = lm.read_on(prefix[None], None)[1].rows(torch.zeros_like(tokens))
            edits = {site: keep(values) for site, values in seen.items()}
            lm.read_on(tokens[:, None], past, edits)
            found = {site: values[0] for site, values in seen.items()}
            self.n_tokens += len(prefix) + len(tokens)
        else:
            whole = torch.cat([prefix.expand(len(tokens), -1), tokens[:, None]], dim=1)
            found = lm.capture(whole, host.sites)
            self.n_tokens += whole.numel()
        x, *targets = (found[site][:, -1].float() for site in host.sites)
        target = targets[0] if targets else None
        at = torch.full_like(tokens, len(prefix))
        applies = host.domain.covers(tokens, x, target=target, positions=at)
        if not bool(applies.any()):
            return None
        x, target = x[applies], None if target is None else target[applies]
        rows = Rows(x, host.sae.encode_for(x, target), tokens[applies], applies[applies].cpu())
        return replace(rows, target=target)

    @property
    def _reads_on(self) -> bool:
        """Whether words are read behind what the model remembers of a prefix.

        Edits see what is read on, and there are none where a site cannot be replaced.
        """
        lm = self.host.lm
        replaceable = all(Site.of(site).replaceable for site in self.host.sites)
        return replaceable and isinstance(lm, ReadsOn) and lm.reads_on

    def _words_at_once(self, length: int) -> int:
        """Words per pass behind a prefix; the copies of its keys and values take the memory."""
        info = self.host.lm.info
        of_word = 2 * 4 * info.n_layers * info.d_model * length
        return self.most or max(CONTEXTS, batch_budget(self.host.lm.device) // of_word)

    def at_once(self, length: int) -> int:
        """Texts per forward pass: more if they are short, as each pass reads all weights."""
        most = max(CONTEXTS, 2 ** (POSITIONS // length).bit_length() // 2)
        return self.most or contexts_at_once(self.host.lm, length, most=most)

    def _plan(self, title: str, n: int, length: int, n_texts: int) -> Plan:
        lm, sae = self.host.lm, self.host.sae
        rows = 4 * n_texts * (sae.d_in + sae.d_out)
        passes = forward_bytes(lm, n, length) + 3 * 4 * n * length * sae.d_sae
        return Plan(title, lm.device, passes + rows + AT_REST, "lower --batch-size or --length")


def _last(mask: Bool[Tensor, "text pos"]) -> Bool[Tensor, "text pos"]:
    """The last position of each text where `mask` holds."""
    later = mask.flip(1).long().cumsum(1).flip(1)
    return mask & (later == 1)


def prompts_of(lm: LanguageModel, texts: Sequence[str], rules: TaskRules) -> list[Prompt]:
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
