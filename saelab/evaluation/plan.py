"""What an evaluation will need, told before it starts."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from saelab.activations.corpus import Corpus, tokens_within
from saelab.activations.forward import model_input
from saelab.evaluation.dictionary import MOST_COMPARED, dictionary_cost
from saelab.evaluation.options import EvaluateOptions
from saelab.evaluation.suite import asked_for
from saelab.kernels.cuda import finish
from saelab.lm.cost import backward_bytes, contexts_at_once, forward_bytes, logits_bytes
from saelab.lm.protocol import LanguageModel
from saelab.resources import Plan, batch_budget
from saelab.sae.base import AbstractSAE
from saelab.sae.decoder import dtype_of
from saelab.sae.in_blocks import numbers_at_once

BACKWARD = 3
"""Cost of a pass with gradients, in passes without."""
TRIED_POSITIONS = 256
CODE_BYTES = 3 * 4
"""Bytes for a latent of a row while it is encoded: three copies of its pre-activation."""
AT_REST = 300 * 2**20
"""Bytes for memory that the allocator keeps, and for code that is loaded during the evaluation."""


def sized(
    options: EvaluateOptions, lm: LanguageModel, corpus: Corpus, d_sae: int
) -> EvaluateOptions:
    """The options with a batch size; if none was given, it is chosen from the free memory."""
    if options.batch_size is not None:
        return options
    n = contexts_at_once(lm, corpus.context_length, most=options.contexts)
    # A wide SAE's pre-activations take more than the model's pass.
    fitting = batch_budget(lm.device) // (CODE_BYTES * corpus.context_length * d_sae)
    return options.model_copy(update={"batch_size": max(1, min(n, fitting))})


@dataclass(frozen=True)
class Evaluated:
    """The sizes of what is evaluated."""

    lm: LanguageModel
    sae: AbstractSAE
    corpus: Corpus
    options: EvaluateOptions
    sample: tuple[Tensor, Tensor | None] | None = None
    """Rows, and what a transcoder makes of them, to time another encoder; None: any rows."""

    def plan(self) -> Plan:
        """The plan: memory from shapes, time from a few positions through the model and the SAE."""
        return Plan(
            "evaluate",
            self.lm.device,
            self._memory(),
            "lower --batch-size, or use a machine with more",
            self._seconds(),
        )

    def _memory(self) -> int:
        lm, options, length = self.lm, self.options, self.corpus.context_length
        passes = forward_bytes(lm, options.contexts, length)
        numbers = options.contexts * length * self.sae.d_sae
        if self.sae.affine_encoder() is not None:  # then it selects in blocks of latents
            numbers = min(numbers, numbers_at_once(lm.device))
        peak = max(passes + logits_bytes(lm), 5 * 4 * numbers)
        if self._compares:
            peak = max(peak, dictionary_cost(self.sae)[0])
        if options.suite == "full" and not options.metrics:
            some = min(options.n_uniformity, contexts_at_once(lm, length, backward=True))
            sample = 6 * 4 * min(options.n_sample, options.n_tokens) * self.sae.d_in
            peak = max(peak, backward_bytes(lm, some, length)) + sample
        return peak + AT_REST

    @property
    def _compares(self) -> bool:
        """Whether all pairs of decoder rows are compared."""
        asked = {m.name for m in asked_for(self.options)}
        compared = self.sae.config.decoder_problem is None and self.sae.d_sae <= MOST_COMPARED
        return compared and "dictionary" in asked

    def _seconds(self) -> float:
        options, length = self.options, self.corpus.context_length
        text = tokens_within(self.corpus, options.n_tokens)
        positions = 3.0 * text
        if options.suite == "full" and not options.metrics:
            # Both draw one token per context.
            n_drawn = -(-text // length)
            ablated = min(options.n_ablated_tokens, n_drawn) * (1 + 2 * options.n_ablated_latents)
            positions += text + ablated * length / 2
            positions += BACKWARD * min(options.n_uniformity, n_drawn) * length
        pairs = dictionary_cost(self.sae)[1] if self._compares else 0.0
        return positions * self._seconds_per_position() + pairs

    @torch.no_grad()
    def _seconds_per_position(self) -> float:
        """Seconds per position of a pass with cross-entropies, the SAE included."""
        n = max(1, TRIED_POSITIONS // self.corpus.context_length)
        tokens = model_input(self.corpus.read(0, n).tokens).to(self.lm.device)
        width = self.sae.d_in
        started = 0.0
        for _ in range(2):  # What is done for the first time takes longer.
            started = time.perf_counter()
            out = self.lm.run(tokens).at(...)
            for part in out.pieces():
                out.logits(part).float().log_softmax(-1)
            rows = torch.randn(tokens.numel(), width, device=tokens.device).to(dtype_of(self.sae))
            x, target = self.sample or (rows, None)
            x, target = x[: len(rows)], None if target is None else target[: len(rows)]
            codes = self.sae.encode_for(x, target)
            if self.sae.outer_fit(x, codes) is None:
                self.sae.decode(codes, x)
            finish(tokens.device)
        return (time.perf_counter() - started) / tokens.numel()
