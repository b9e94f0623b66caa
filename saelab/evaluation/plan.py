"""What an evaluation will need, told before it starts."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from saelab.activations.corpus import Corpus, tokens_within
from saelab.activations.forward import model_input
from saelab.evaluation.options import EvaluateOptions
from saelab.lm.cost import backward_bytes, contexts_at_once, forward_bytes, logits_bytes
from saelab.lm.protocol import LanguageModel
from saelab.resources import Plan, batch_budget
from saelab.sae.base import AbstractSAE
from saelab.sae.decoder import dtype_of

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
        codes = CODE_BYTES * options.contexts * length * self.sae.d_sae
        peak = max(passes + logits_bytes(lm), codes)
        if options.suite == "full":
            some = min(options.n_uniformity, contexts_at_once(lm, length, backward=True))
            sample = 6 * 4 * min(options.n_sample, options.n_tokens) * self.sae.d_in
            peak = max(peak, backward_bytes(lm, some, length)) + sample
        return peak + AT_REST

    def _seconds(self) -> float:
        options, length = self.options, self.corpus.context_length
        text = tokens_within(self.corpus, options.n_tokens)
        positions = 3.0 * text
        if options.suite == "full":
            # Both draw one token per context.
            n_drawn = -(-text // length)
            ablated = min(options.n_ablated_tokens, n_drawn) * (1 + 2 * options.n_ablated_latents)
            positions += text + ablated * length / 2
            positions += BACKWARD * min(options.n_uniformity, n_drawn) * length
        return positions * self._seconds_per_position()

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
            if tokens.device.type == "cuda":
                torch.cuda.synchronize(tokens.device)
        return (time.perf_counter() - started) / tokens.numel()
