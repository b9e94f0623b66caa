"""What a training will need, told before it starts."""

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from saelab.activations import POOL_ROWS
from saelab.activations.dtypes import itemsize
from saelab.activations.format import Dtype
from saelab.activations.live import LiveBatches
from saelab.config import UsageError
from saelab.kernels.cuda import finish
from saelab.kernels.rules import FusedRule
from saelab.kernels.sizes import GRAM_LATENTS
from saelab.lm.cost import backward_bytes, logits_bytes
from saelab.resources import Plan
from saelab.sae.base import AbstractSAE
from saelab.sae.context import LossContext
from saelab.sae.losses import local_loss
from saelab.sae.transcoder import make_transcoder
from saelab.training.config import TrainConfig
from saelab.training.fused_steps import FusedSteps
from saelab.training.objectives import Local
from saelab.training.source import START_ROWS, Source
from saelab.training.steps import fused_problem
from saelab.training.untrained import untrained_sae
from saelab.types import ActivationBatch

GRADS = 4
"""Bytes per weight more where kernels alone train replicas: their gradients are stored."""
STATES = 4
"""Copies of the weights in memory: weights, gradients and Adam's two moments; an average of the
weights adds one."""
FUSED = 6
"""Bytes per weight where kernels alone train, beside its moments: no gradient is stored, but a
bfloat16 copy is."""
DENSE = 4
"""Number of `[batch, d_sae]` tensors in memory at once in a step."""
TRIED_ROWS = 512
RECORDED = 4
"""Steps by kernels until one does nothing for the first time."""
AT_REST = 200 * 2**20
"""Bytes for code that is loaded during training, and for memory that the allocator keeps."""


def training_plan(
    source: Source, configs: Sequence[TrainConfig], shards: int = 1, replicas: int = 1
) -> Plan:
    """The plan for SAEs that share one read: memory from shapes, time from a step.

    The memory is that of one of `shards` processes which hold each SAE together, and read their
    replica's rows.
    """
    stored = 0
    if replicas > 1:  # As many steps, of fewer rows.
        stored = sum(_averaged(source, config, shards) for config in configs)
        configs = [config.of_rows(replicas) for config in configs]
    plan = Plan(
        "train" if len(configs) == 1 else f"train of {len(configs)} SAEs",
        source.device,
        _memory(source, configs, shards) + stored,
        "lower --batch-size or --d-sae, or train fewer at once",
    )
    if not plan.fits:  # Nor would the SAE whose step is timed.
        return plan
    times = [_seconds(source, config, shards) for config in configs]
    known = [seconds for seconds in times if seconds is not None]
    return replace(plan, seconds=sum(known) if len(known) == len(times) else None)


Part = tuple[Source, Sequence[TrainConfig], int]
"""SAEs of one site, and how many processes hold each of them together."""


def live_plan(parts: Sequence[Part], batches: LiveBatches) -> Plan:
    """The plan for SAEs of any sites that share the passes of the running model."""
    n = sum(len(configs) for _, configs, _ in parts)
    weights = sum(_weights(*part) for part in parts)
    step = max((_step(*part) for part in parts), default=0)
    sample = max((_sample(source) for source, _, _ in parts), default=0)
    plan = Plan(
        f"live train of {n} SAE{'' if n == 1 else 's'}",
        batches.device,
        weights + max(step + batches.memory(), sample) + AT_REST,
        "lower --buffer-rows, --batch-size or --d-sae, train fewer at once, or share them out to "
        "more processes by torchrun",
    )
    return replace(plan, seconds=_live_seconds(parts, batches)) if plan.fits else plan


def _live_seconds(parts: Sequence[Part], batches: LiveBatches) -> float | None:
    """Seconds of the SAEs' steps, each kind timed once, and of the model's passes."""
    alike: dict[tuple[object, ...], float | None] = {}
    steps: list[float | None] = []
    every = [(source, config, n) for source, configs, n in parts for config in configs]
    for source, config, n in every:
        widths = source.site.d_in, source.target.d_in
        key = (repr(config.sae), *widths, config.skip, config.n_tokens, n)
        if key not in alike:
            alike[key] = _seconds(source, config, n)
        steps.append(alike[key])
    rows = max((config.n_tokens for _, config, _ in every), default=0)
    known = [seconds for seconds in steps if seconds is not None]
    return sum(known) + batches.seconds_per_row() * rows if len(known) == len(steps) else None


def state_bytes(
    weights: int, *, fused: bool = False, average: bool = False, moments: Dtype = "float32"
) -> int:
    """Memory of an SAE's weights with all that training keeps for each of them."""
    each = FUSED + 2 * itemsize(moments) if fused else 4 * STATES
    return weights * (each + 4 * average)


def one_matrix(rule: FusedRule | None, width: int) -> int:
    """How many of `width` = d_in + d_out numbers a latent has where kernels train it."""
    return width // 2 if rule is not None and rule.has_one_matrix else width


def pursuit_bytes(rule: FusedRule | None, batch: int, m: int, d_in: int, number: int) -> int:
    """Bytes that a pursuit by kernels takes beside, with products of `number` bytes.

    They are a gradient for each step of each row, and the atoms' cosines where they fit.
    """
    if rule is None or not rule.pursues:
        return 0
    return number * (batch * int(rule.k) * d_in + (m**2 if m <= GRAM_LATENTS else 0))


def step_bytes(batch: int, d_sae: int, width: int, *, fused: bool = False) -> int:
    """Memory of a step: its `[batch, d_sae]` tensors, and rows of `width` numbers, d_in + d_out."""
    return batch * ((2 if fused else 4 * DENSE) * d_sae + 16 * width)


def _memory(source: Source, configs: Sequence[TrainConfig], shards: int) -> int:
    rows, stored = source.store.n_rows, itemsize(source.store.manifest.dtype)
    # Two groups of rows are in memory, and a sample at the start.
    pool = 2 * min(POOL_ROWS, rows) * stored * (source.site.d_in + source.target.d_in)
    held = max(_step(source, configs, shards) + pool, _sample(source))
    return _weights(source, configs, shards) + held + _model(source) + AT_REST


def alone_bytes(
    config: TrainConfig, d_in: int, d_out: int, device: torch.device, shards: int = 1
) -> int:
    """Bytes of training one SAE in a process that holds it, or one of `shards`; without rows."""
    sizes = d_in, d_out, device, shards
    return _kept(config, *sizes) + _stepping(config, *sizes) + AT_REST


def _averaged(source: Source, config: TrainConfig, shards: int) -> int:
    """Bytes of the gradients that replicas store to average them, beside those of autograd."""
    d_in, d_out = source.site.d_in, source.target.d_in
    if _rule(config, d_in, d_out, source.device) is None:
        return 0
    return GRADS * (d_in + d_out) * -(-config.sae.d_sae // shards)


def _weights(source: Source, configs: Sequence[TrainConfig], shards: int = 1) -> int:
    """Bytes of what the SAEs keep between two steps."""
    sizes = source.site.d_in, source.target.d_in, source.device
    return sum(_kept(config, *sizes, shards) for config in configs)


def _step(source: Source, configs: Sequence[TrainConfig], shards: int = 1) -> int:
    """Bytes of the largest step, beside the pre-activations that are kept."""
    sizes = source.site.d_in, source.target.d_in, source.device
    return max(_stepping(config, *sizes, shards) for config in configs)


def _kept(config: TrainConfig, d_in: int, d_out: int, device: torch.device, shards: int = 1) -> int:
    m, rule = -(-config.sae.d_sae // shards), _rule(config, d_in, d_out, device)
    number, average = itemsize(config.precision), config.ema is not None
    own, width = config.sae.own_step_bytes(d_in, device), d_in + d_out
    # Every SAE that kernels train keeps its pre-activations for itself.
    own += number * config.batch_size * m if rule is not None else 0
    own += pursuit_bytes(rule, config.batch_size, m, d_in, number)
    weights, fused, moments = one_matrix(rule, width) * m, rule is not None, config.moments
    return own + state_bytes(weights, fused=fused, average=average, moments=moments)


def _stepping(
    config: TrainConfig, d_in: int, d_out: int, device: torch.device, shards: int = 1
) -> int:
    kernels = _rule(config, d_in, d_out, device) is not None
    m = 0 if kernels else -(-config.sae.d_sae // shards)
    return step_bytes(config.batch_size, m, d_in + d_out)


def _rule(config: TrainConfig, d_in: int, d_out: int, device: torch.device) -> FusedRule | None:
    """The rule by which kernels alone train it, if they do."""
    with torch.device("meta"):
        sae = config.sae.build(d_in)
        if config.target_site is not None:
            make_transcoder(sae, d_out)
    rule = sae.fused_rule()
    if isinstance(rule, str):
        return None
    return rule if fused_problem(config, sae, device) is None else None


def _sample(source: Source) -> int:
    """Bytes of the rows that an SAE starts from."""
    width = source.site.d_in + source.target.d_in
    return 3 * 4 * min(START_ROWS, source.store.n_rows) * width


def _model(source: Source) -> int:
    """Memory for passes of the language model, in training that runs it."""
    if not source.end_to_end:
        return 0
    lm, length = source.model(), source.store.manifest.context_length
    return backward_bytes(lm, source.config.batch_size // length, length) + logits_bytes(lm)


def _seconds(source: Source, config: TrainConfig, shards: int = 1) -> float | None:
    """Seconds of the training; None if a step needs more than rows of the site.

    Of several processes, a part of the latents is timed, without what they exchange.
    """
    if source.end_to_end or config.sae.needs_gradient:
        return None
    if shards > 1:  # The whole may not fit on a device.
        m = max(-(-config.sae.d_sae // shards), math.ceil(config.sae.sparsity.k or 1))
        config = config.model_copy(update={"sae": config.sae.model_copy(update={"d_sae": m})})
    widths = source.site.d_in, source.target.d_in, source.widths
    try:
        sae = untrained_sae(config, *widths, device=source.device)
    except UsageError:
        if shards > 1:  # Its groups or choices need more latents than a part has.
            return None
        raise
    # A GPU takes few rows no faster than many.
    few = config.batch_size if source.device.type == "cuda" else TRIED_ROWS
    rows, wanted = (
        torch.randn(min(few, config.batch_size), width, device=source.device)
        for width in (source.site.d_in, source.target.d_in)
    )
    batch = ActivationBatch(rows, wanted if sae.is_transcoder else None)
    if source.device.type == "cuda" and _rule(config, *widths[:2], source.device):
        seconds = kernel_seconds(config, sae, batch)
        gc.collect()
        torch.cuda.empty_cache()  # The training's memory has other sizes.
        return config.n_steps * seconds
    return config.n_steps * _autograd_seconds(config, sae, batch)


def _autograd_seconds(config: TrainConfig, sae: AbstractSAE, batch: ActivationBatch) -> float:
    """Seconds of a step of `sae` by autograd or of its own, judged by a batch that may be small."""
    rows, device = batch.x, batch.x.device
    context = LossContext(float(sae.d_in))
    if (own := sae.own_step()) is not None:
        single = ActivationBatch(rows[:1])
        every = _timed(partial(own, ActivationBatch(rows), context), device)
        one = _timed(partial(own, single, context), device)
        a_row = max(0.0, every - one) / max(1, len(rows) - 1)
        return config.batch_size * a_row + one
    optimizer = torch.optim.Adam(sae.parameters())

    half = config.precision == "bfloat16"

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            loss = local_loss(sae, batch, context).total
        loss.backward()

    a_row = _timed(step, device) / len(rows)
    return config.batch_size * a_row + _timed(optimizer.step, device)


def kernel_seconds(config: TrainConfig, sae: AbstractSAE, batch: ActivationBatch) -> float:
    """Seconds of a step of `sae` by kernels alone, on a whole batch, while no latent is dead."""
    device, width = batch.x.device, float(sae.d_in)
    sae.initialise(batch.x)
    way = FusedSteps(config, sae.cpu(), device, width)
    context = LossContext(width, None, config.n_steps // 2, config.n_steps)
    step = partial(way.optimizer_step, batch, Local(), context, lr=0.0, scale=1.0)
    # The first steps compile kernels and record them.
    return _timed(step, device, rounds=RECORDED)


def _timed(work: Callable[[], object], device: torch.device, rounds: int = 2) -> float:
    started = 0.0
    for _ in range(rounds):  # What is done for the first time takes longer.
        started = time.perf_counter()
        work()
        finish(device)
    return time.perf_counter() - started
