"""Activations of the running model, served like those of a store, but never written."""

import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from saelab.activations.corpus import Corpus
from saelab.activations.forward import model_input, sent
from saelab.activations.live_pool import Filling, LiveSite, Pool, joined
from saelab.activations.live_text import RUN_CONTEXTS, LiveOptions, LiveText, Passed
from saelab.activations.mixing import WINDOW_BATCHES, design_effect
from saelab.activations.resume import check_same_order
from saelab.activations.row_exchange import RowExchange, Rows
from saelab.formats.json_file import canonical_digest
from saelab.kernels.cuda import finish
from saelab.kernels.sizes import ceil_div
from saelab.lm.cost import forward_bytes, pass_contexts, recorded_copies
from saelab.lm.protocol import ActivationSource
from saelab.ranks import Ranks
from saelab.types import ActivationBatch

PASSES = 4  # Smaller ones would keep Python as busy, and a GPU less.
"""Forward passes of a pool, at least, so that as many processes share them and round alike."""


class LiveBatches(Iterator[list[ActivationBatch]]):
    """Endless batches in the model's dtype for any number of SAEs; one pass serves them all.

    A pool is filled from runs of contexts all over the text (in order if the text is endless). Its
    rows are shuffled and served, then the next pool is filled. Every SAE gets the same rows in the
    same order, which depends only on (seed, epoch): not on the other SAEs. In the place of a row
    that is too large at an SAE's own site, this SAE gets the next one that is not.

    Each of several processes runs the model on its share of a pool's contexts and gets, of all of
    them, the rows at the sites of its own SAEs; `next` is called by all together. The batches are
    those of one process. Memory: one pool of rows at these sites, in the model's dtype.

        batches = LiveBatches(lm, corpus, [LiveSite("blocks.1.hook_resid_post")], 4096)
        x = next(batches)[0].x

    Args:
        exchange: which hooks each process wants; default: those of `sites`, in one process.

    Attributes:
        ahead: whether the next pool is filled, pass by pass, while one is served, so that a GPU
            that is behind does not wait for it. It takes the memory of a second pool.

    Raises:
        UsageError: a hook does not exist, or the corpus has no context from `options.first` on.
    """

    def __init__(
        self,
        lm: ActivationSource,
        corpus: Corpus,
        sites: Sequence[LiveSite],
        batch_size: int,
        options: LiveOptions | None = None,
        exchange: RowExchange | None = None,
    ) -> None:
        options = options or LiveOptions()
        self._options = options
        own = [hook for site in sites for hook in site.hooks]
        self._exchange = exchange or RowExchange.of(lm, [own], Ranks())
        self._lm, self._corpus, self.sites = lm, corpus, tuple(sites)
        self.batch_size = batch_size
        runs = max(1, options.pool_rows // corpus.context_length // RUN_CONTEXTS)
        most = options.forward_contexts or pass_contexts(lm, corpus.context_length)
        passes = max(PASSES, self._exchange.ranks.world, ceil_div(runs * RUN_CONTEXTS, most))
        self._text = LiveText(lm, corpus, options, pool_runs=runs, most_passes=passes)
        self._pool, self._offset = 0, 0
        self._rows: Pool | None = None
        self._coming: Filling | None = None
        self.ahead = False

    @property
    def pool_contexts(self) -> int:
        """Contexts whose rows are shuffled together."""
        return self._text.pool_runs * RUN_CONTEXTS

    @override
    def __next__(self) -> list[ActivationBatch]:
        """A batch for each of `sites`."""
        pieces: list[list[ActivationBatch]] = []
        missing = self.batch_size
        while missing:
            if self._rows is None:
                self._rows = (self._coming or self._filling(self._pool)).pool(self.sites)
                self._coming = None
            stop = min(self._rows.n, self._offset + missing)
            pieces.append([self._rows.batch(site, self._offset, stop) for site in self.sites])
            missing -= stop - self._offset
            self._offset = stop
            if stop == self._rows.n:
                self._pool, self._offset, self._rows = self._pool + 1, 0, None
        if self.ahead and self._rows is not None:
            self._coming = self._coming or self._filling(self._pool + 1)
            self._coming.up_to(self._offset / self._rows.n)
        return [joined(parts) for parts in zip(*pieces, strict=True)]

    def position_of(self, site: LiveSite) -> "LivePosition":
        """The position of the next batch, as the checkpoints of this site's SAEs keep it."""
        return LivePosition(self, site)

    def order(self, site: LiveSite) -> dict[str, int | str]:
        """What decides the rows that an SAE of this site gets."""
        text = [dict(self._corpus.facts), self._corpus.context_length, *site.hooks]
        order: dict[str, int | str] = {
            "seed": self._options.seed,
            "pool_runs": self._text.pool_runs,
            "first": self._options.first,
            "text": canonical_digest(text),
        }
        if site.limits:
            order["next_above"] = repr(sorted(site.limits.items()))
        if self._options.first_position:
            order["first_position"] = self._options.first_position
        return order

    @property
    def position(self) -> tuple[int, int]:
        """The pool and the row in it where the next batch starts."""
        return self._pool, self._offset

    @position.setter
    def position(self, position: tuple[int, int]) -> None:
        self._pool, self._offset = position
        self._rows = self._coming = None

    def mixing(self) -> dict[str, float]:
        """Design effects of the first batches; see `saelab.activations.mixing`."""
        found: list[Int[np.ndarray, " row"]] = []
        missing, pool = WINDOW_BATCHES * self.batch_size, 0
        while missing > 0:
            text = self._text.pool(pool)
            contexts = [np.repeat(p.contexts, p.mask.sum(axis=1)) for p in text.passes]
            found.append(np.concatenate(contexts)[text.order][:missing])
            missing, pool = missing - len(found[-1]), pool + 1
        rows = np.concatenate(found)
        return {
            "batch": design_effect(rows, self.batch_size),
            f"{WINDOW_BATCHES}_batches": design_effect(rows, WINDOW_BATCHES * self.batch_size),
        }

    @property
    def pool_bytes(self) -> int:
        """Bytes of the rows that are shuffled together."""
        width = self._exchange.width(self._exchange.own)
        return self.pool_contexts * self._corpus.context_length * width * self._empty().itemsize

    @property
    def device(self) -> torch.device:
        """Device of the model and of the batches."""
        return self._lm.device

    def seconds_per_row(self) -> float:
        """Seconds of the model's passes per row, judged by one pass after a smaller one."""
        one, like = self._text.read(self._text.contexts(0)[0]), self._empty()
        self._captured(Passed(one.contexts[:1], one.tokens[:1], one.mask[:1]), like)
        start = time.perf_counter()
        self._captured(one, like)
        finish(self.device)
        every = max(1, int(one.mask.sum())) * self._exchange.ranks.world
        return (time.perf_counter() - start) / every

    def memory(self) -> int:
        """Bytes at the peak, beside the model's weights: a pool, a pass and a batch."""
        length, passed = (
            self._corpus.context_length,
            ceil_div(self.pool_contexts, self._text.most_passes),
        )
        size, every = self._empty().itemsize, self._exchange.hooks
        # What was captured, its rows, and with several processes what is sent and received.
        copies = 2 if self._exchange.ranks.world == 1 else 4
        copies += recorded_copies(self.device)
        captured = copies * passed * length * self._exchange.width(every) * size
        served = self._exchange.width([hook for site in self.sites for hook in site.hooks])
        batch = 2 * self.batch_size * served * 4
        pools = (1 + self.ahead) * self.pool_bytes
        return pools + max(captured + forward_bytes(self._lm, passed, length), batch)

    def _empty(self) -> Float[Tensor, " 0"]:
        return torch.empty(0, dtype=getattr(torch, self._lm.info.dtype), device=self._lm.device)

    def _filling(self, pool: int) -> Filling:
        """A pool whose rows come in the order of reading."""
        text, like = self._text.pool(pool), self._empty()
        return Filling(
            text.counts,
            sent(torch.from_numpy(text.order), self._lm),
            self._exchange,
            like,
            lambda number, into: self._captured(text.passes[number], like, into),
        )

    def _captured(self, one: Passed, like: Tensor, into: Rows | None = None) -> Rows:
        """The rows of a pass at every hook that any process wants, where they are to be written."""
        # Indices, as a GPU would be waited for at every hook to count the rows of a mask.
        rows = sent(torch.from_numpy(np.flatnonzero(one.mask)), self._lm)
        tokens = sent(model_input(one.tokens), self._lm)
        found, into = self._lm.capture(tokens, self._exchange.hooks), into or {}
        return {
            h: torch.index_select(v.flatten(0, 1).to(like.dtype), 0, rows, out=into.get(h))
            for h, v in found.items()
        }


class LivePosition:
    """The position of live batches, as an SAE of one site keeps it.

    It names the SAE's own site and no other: the SAE may go on alone, or beside others.
    """

    def __init__(self, batches: LiveBatches, site: LiveSite) -> None:
        self._batches, self._site = batches, site

    def state_dict(self) -> dict[str, int | str]:
        """The position of the next batch; once loaded, the next batch is bit-equal."""
        pool, offset = self._batches.position
        return {"pool": pool, "offset": offset, **self._batches.order(self._site)}

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Continue from a `state_dict`.

        Raises:
            UsageError: the state was taken from another text, hook, seed or pool size.
        """
        check_same_order(self._batches.order(self._site), state)
        self._batches.position = int(state["pool"]), int(state["offset"])
