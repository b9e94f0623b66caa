"""What a training will need, told before it starts."""

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from saelab.activations.dtypes import itemsize
from saelab.activations.order import POOL_ROWS
from saelab.lm.cost import backward_bytes, forward_bytes, logits_bytes
from saelab.resources import Plan
from saelab.sae.context import LossContext
from saelab.sae.losses import local_loss
from saelab.training.config import TrainConfig
from saelab.training.source import START_ROWS, Source
from saelab.training.untrained import untrained_sae
from saelab.types import ActivationBatch

STATES = 4
"""Copies of the weights in memory: weights, gradients and Adam's two moments; an average of the
weights adds one."""
DENSE = 4
"""Number of `[batch, d_sae]` tensors in memory at once in a step."""
TRIED_ROWS = 512
AT_REST = 200 * 2**20
"""Bytes for code that is loaded during training, and for memory that the allocator keeps."""


def training_plan(source: Source, configs: Sequence[TrainConfig]) -> Plan:
    """The plan for SAEs that share one read: memory from shapes, time from a step on a few rows."""
    times = [_seconds(source, config) for config in configs]
    known = [seconds for seconds in times if seconds is not None]
    return Plan(
        "train" if len(configs) == 1 else f"train of {len(configs)} SAEs",
        source.device,
        _memory(source, configs),
        "lower --batch-size or --d-sae, or train fewer at once",
        sum(known) if len(known) == len(times) else None,
    )


def _memory(source: Source, configs: Sequence[TrainConfig]) -> int:
    width = source.site.d_in + source.target.d_in
    weights = sum(
        4 * (STATES + (config.ema is not None)) * width * config.sae.d_sae
        + config.sae.own_step_bytes(source.site.d_in, source.device)
        for config in configs
    )
    step = max(4 * config.batch_size * (DENSE * config.sae.d_sae + 4 * width) for config in configs)
    rows, stored = source.store.n_rows, itemsize(source.store.manifest.dtype)
    # Two groups of rows are in memory, and a sample at the start.
    pool = 2 * min(POOL_ROWS, rows) * stored * width
    sample = 3 * 4 * min(START_ROWS, rows) * width
    return weights + max(step + pool, sample) + _model(source) + AT_REST


def _model(source: Source) -> int:
    """Memory for passes of the language model, in training that runs it."""
    config, length = source.config, source.store.manifest.context_length
    if source.end_to_end:
        lm = source.model()
        return backward_bytes(lm, config.batch_size // length, length) + logits_bytes(lm)
    return forward_bytes(source.model(), 32, length) if config.live else 0


def _seconds(source: Source, config: TrainConfig) -> float | None:
    """Seconds of the training; None if a step needs more than rows of the site."""
    if source.end_to_end or config.live or config.target_site or config.sae.needs_gradient:
        return None
    width = source.site.d_in
    sae = untrained_sae(config, width, width, source.widths).to(source.device)
    rows = torch.randn(min(TRIED_ROWS, config.batch_size), source.site.d_in, device=source.device)
    context = LossContext(float(source.site.d_in))
    if (own := sae.own_step()) is not None:
        batch, single = ActivationBatch(rows), ActivationBatch(rows[:1])
        every = _timed(partial(own, batch, context), source.device)
        one = _timed(partial(own, single, context), source.device)
        a_row = max(0.0, every - one) / max(1, len(rows) - 1)
        return config.n_steps * (config.batch_size * a_row + one)
    optimizer = torch.optim.Adam(sae.parameters())

    def step() -> None:
        local_loss(sae, ActivationBatch(rows), context).total.backward()

    a_row = _timed(step, source.device) / len(rows)
    return config.n_steps * (config.batch_size * a_row + _timed(optimizer.step, source.device))


def _timed(work: Callable[[], object], device: torch.device) -> float:
    started = 0.0
    for _ in range(2):  # What is done for the first time takes longer.
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return time.perf_counter() - started
