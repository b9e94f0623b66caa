"""What collecting features will need, told before it starts."""

import time
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.activations.corpus import Corpus, tokens_within
from saelab.activations.forward import model_input
from saelab.analysis.features.evidence import FIRINGS_AT_ONCE, WORKERS
from saelab.analysis.features.options import FeatureOptions
from saelab.analysis.features.reading import ROWS_AT_ONCE, encoded_at_once
from saelab.analysis.features.weights import COSINES_AT_ONCE
from saelab.analysis.histogram import BINS_PER_SIDE
from saelab.kernels.cuda import finish
from saelab.lm.cost import forward_bytes
from saelab.lm.predictions import rows_at_once
from saelab.lm.protocol import LanguageModel
from saelab.resources import Plan, free_on
from saelab.sae.base import AbstractSAE
from saelab.sae.decoder import dtype_of
from saelab.sae.in_blocks import codes_of, numbers_at_once
from saelab.training.run import Run

TRIED_POSITIONS = 512
FIRING_BYTES = 12
LOOKED_UP = 4
"""Bytes of each firing in memory: the latents of every row."""
WORKED_ON = 256
"""Bytes of each firing that a core works on, measured."""
EVIDENCE_SECONDS, AT_BEST = 3e-7, 6
"""A core's seconds for each firing's evidence, and how many times faster many cores are, measured:
an H200's machine, 16 cores."""
RESULTS, EXAMPLE_BYTES, OTHER_BYTES = 3, 14, 512
"""The results are in memory as parts, joined, and as the file; OTHER_BYTES: logits, neighbours and
figures of a latent."""
AT_REST = 300 * 2**20
"""Bytes for code that is loaded meanwhile, and for memory that the allocator keeps."""


def features_plan(
    run: Run,
    lm: LanguageModel,
    sae: AbstractSAE,
    corpus: Corpus,
    options: FeatureOptions,
    latents: Sequence[int] = (),
) -> Plan:
    """The plan: memory and disk from shapes and the run's L0, time from both and a few positions.

    With `latents`, of evidence of these alone.
    """
    n_tokens = tokens_within(corpus, options.n_tokens)
    length = corpus.context_length
    at_once = options.contexts_at_once(lm.device, length)
    passes = forward_bytes(lm, at_once, length)
    rows = rows_at_once(lm.info.d_vocab, lm.device)
    weights = 4 * max(COSINES_AT_ONCE, 3 * rows * lm.info.d_vocab)
    weights += 4 * min(numbers_at_once(lm.device), 2 * ROWS_AT_ONCE * sae.d_sae)
    own, cuda = max(passes, weights), lm.device.type == "cuda"
    # Few positions take a GPU nearly as long as a whole batch, if that fits.
    whole = cuda and own + AT_REST <= free_on(lm.device)
    n = at_once if whole else max(1, TRIED_POSITIONS // length)
    seconds, share = _tried(run, lm, sae, corpus, n, latents)
    firings = int(n_tokens * share.sum())
    # The firings of one latent are not divided.
    dense = n_tokens * share.topk(min(WORKERS, len(share))).values
    worked_on = int(dense.clamp_min(FIRINGS_AT_ONCE).sum())
    evidence = LOOKED_UP * firings + WORKED_ON * min(worked_on, firings)
    evidence += RESULTS * _latent_bytes(options) * len(share)
    return Plan(
        "features",
        lm.device,
        (own if cuda else max(own, evidence)) + AT_REST,
        "lower --n-tokens or --batch-size, or of a wide SAE --n-examples",
        n_tokens * seconds + firings * EVIDENCE_SECONDS / min(WORKERS, AT_BEST),
        FIRING_BYTES * (firings + n_tokens * (0 if latents else options.near_miss_ranks)),
        run.path,
        beside=evidence + AT_REST if cuda else 0,
    )


def _latent_bytes(options: FeatureOptions) -> int:
    """Bytes of a latent in features.h5, with windows of one firing."""
    examples = 3 * options.n_examples + options.n_strata * options.n_per_stratum
    shown = EXAMPLE_BYTES * (examples + 2 * options.n_silent)
    return shown + 4 * (BINS_PER_SIDE + 2 * options.n_strata) + OTHER_BYTES


@torch.no_grad()
def _tried(
    run: Run,
    lm: LanguageModel,
    sae: AbstractSAE,
    corpus: Corpus,
    n: int,
    latents: Sequence[int],
) -> tuple[float, Float[Tensor, " latent"]]:
    """Seconds per position of n contexts, and on what share of them each latent fires."""
    n = max(1, corpus.available(n))
    tokens, site = model_input(corpus.read(0, n).tokens), run.config.site
    seconds, share = 0.0, torch.zeros(0)
    for _ in range(2):  # What is done for the first time takes longer.
        started = time.perf_counter()
        rows = lm.capture(tokens, [site])[site].flatten(0, 1)
        finish(lm.device)
        some, read = rows[: encoded_at_once(sae)].to(dtype_of(sae)), time.perf_counter()
        chosen = torch.tensor(latents, dtype=torch.long, device=rows.device)
        codes = codes_of(sae, some, chosen) if latents else sae.encode(some)
        share = codes.firing_counts().cpu() / len(some)
        seconds = (read - started) / len(rows) + (time.perf_counter() - read) / len(some)
    return seconds, share
