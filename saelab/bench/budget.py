"""One dial: from a time to a training's width, k, batch and tokens, by measured laws.

- **Time.** A step is `Pace.step_parts`. A kind of GPU that `measured/` knows has its rates from
  there; any other machine's are measured in a second or two, and scaled by a step that is timed.
- **Tokens.** An SAE of n latents needs tokens in proportion to n^0.6, the exponent that arXiv
  2406.04093 gives for GPT-2's SAEs. The constant is saelab's own: `tiny_topk` reaches FVU 0.02 with
  1,024 latents after 1.2 million tokens. `LEAST` of that is the least that makes sense, `WANTED` is
  aimed at, and beyond `MOST` tokens add little. A store is read `EPOCHS` times at most.
- **Width.** The widest of d_in, 2 d_in, ... 32 d_in that gets its wanted tokens in time.
- **k** is 1.1 sqrt(d_in): 12 of 128 (`tiny_topk`), 30 of 768, 66 of 3,584. The learning rate is
  `TrainConfig`'s, 2e-4 / sqrt(d_sae / 2^14) (2406.04093).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from saelab.bench.machine import Rates, StepShape, measure_rates
from saelab.bench.pace import MEASURED, USABLE, Pace, kinds, pace_of_kind, pace_of_road
from saelab.bench.step import step_config, time_step
from saelab.config import UsageError
from saelab.console import duration, in_bytes, si
from saelab.kernels.rules import FusedRule
from saelab.sae.base import AbstractSAE, AbstractSAEConfig
from saelab.sae.variants import SAE_CONFIG, variant
from saelab.training.config import REFERENCE_WIDTH
from saelab.training.plan import one_matrix, pursuit_bytes, state_bytes, step_bytes

EXPONENT = 0.6
ANCHOR_LATENTS, ANCHOR_TOKENS = 1024, 1.2e6
LEAST, WANTED, MOST = 0.25, 1.0, 100.0
EPOCHS = 20
NARROWEST, WIDEST = 1, 32
"""Latents per dimension of the rows."""
LARGEST_BATCH, SMALLEST_BATCH = 8192, 256
STEPS = 1000
"""Steps that a training should have, by a smaller batch if need be."""
USED = 0.9
"""Share of the budget that is planned with."""


@dataclass(frozen=True)
class BudgetSetting:
    """What a budget is spent on.

    Attributes:
        variant: of the SAE.
        d_in, d_out: widths of what it reads and reconstructs.
        n_rows: rows of the store.
        given: options that are decided already, by their names in `Chosen`; for the SAE its own.
    """

    variant: str
    d_in: int
    d_out: int
    n_rows: int
    given: Mapping[str, Any]


@dataclass(frozen=True)
class Chosen:
    """What was chosen, and why.

    Attributes:
        k: None for a variant that has none.
        seconds: the planned time, the start included.
        told: sentences for the reader.
    """

    d_sae: int
    k: float | int | None
    batch_size: int
    n_tokens: int
    half: bool
    seconds: float
    told: tuple[str, ...]


def needed_tokens(d_sae: int) -> float:
    """Tokens after which an SAE of so many latents is nearly as good as it gets."""
    return ANCHOR_TOKENS * (d_sae / ANCHOR_LATENTS) ** EXPONENT


def usual_k(d_in: int) -> int:
    """Latents per row for rows of this width."""
    return max(1, round(1.1 * math.sqrt(d_in)))


def choose(seconds: float | int, setting: BudgetSetting, pace: Pace) -> Chosen:
    """What fits into so many seconds.

    Raises:
        UsageError: not even the narrowest SAE gets the least tokens that make sense, or no law
            tells what the variant costs.
    """
    time = USED * seconds - pace.start
    plans = [_plan(width, time, setting, pace) for width in _widths(setting)]
    held = [plan for plan in plans if plan.memory <= USABLE * pace.memory]
    if not held:
        least = min(plan.memory for plan in plans)
        raise UsageError(
            f"An SAE of {plans[0].d_sae} latents takes about {in_bytes(least)}, and "
            f"{in_bytes(int(pace.memory))} is free; give a smaller --d-sae or --batch-size."
        )
    best = _widest(held, time, setting)
    _check(best, seconds, setting, pace)
    return _chosen(best, setting, pace, time)


@dataclass(frozen=True)
class _Plan:
    """A width, and what it would cost; `step` is the seconds of a step."""

    d_sae: int
    k: float | int | None
    batch_size: int
    half: bool
    step: float
    memory: int
    affordable: float
    n_tokens: int

    def seconds_of(self, tokens: float | int) -> float:
        return tokens / self.batch_size * self.step


def _widest(held: Sequence[_Plan], time: float, setting: BudgetSetting) -> _Plan:
    """The widest that gets its tokens, or that does the given ones in time; else the narrowest."""
    if "n_tokens" in setting.given:
        enough = [plan for plan in held if plan.seconds_of(plan.n_tokens) <= time]
    else:
        enough = [plan for plan in held if plan.n_tokens >= WANTED * needed_tokens(plan.d_sae)]
    return enough[-1] if enough else held[0]


def _check(best: _Plan, seconds: float | int, setting: BudgetSetting, pace: Pace) -> None:
    given = "n_tokens" in setting.given
    least = best.n_tokens if given else LEAST * needed_tokens(best.d_sae)
    if best.affordable < least:
        minutes = math.ceil((best.seconds_of(least) + pace.start) / USED / 60)
        raise UsageError(
            f"In {duration(seconds)} this machine trains an SAE of {best.d_sae} latents on "
            f"{si(max(0.0, best.affordable))} tokens, and "
            f"{'you asked for' if given else 'a sensible run needs'} {si(least)}; give --budget "
            f"{minutes}m."
        )
    if best.n_tokens < least:
        raise UsageError(
            f"A store of {si(setting.n_rows)} rows, read {EPOCHS} times, is too small for an SAE "
            f"of {best.d_sae} latents, which needs {si(least)} tokens; harvest more, or give "
            "--n-tokens."
        )


def _widths(setting: BudgetSetting) -> list[int]:
    if (given := setting.given.get("d_sae")) is not None:
        return [int(given)]
    top = int(math.log2(WIDEST // NARROWEST))
    return [NARROWEST * setting.d_in * 2**power for power in range(top + 1)]


def _plan(d_sae: int, time: float, setting: BudgetSetting, pace: Pace) -> _Plan:
    sae, k = _sae(d_sae, setting)
    built, rule = _built(sae, setting.d_in)
    fused = pace.kernels and rule is not None and setting.d_in == setting.d_out
    half = setting.given.get("half", fused)
    batch = setting.given.get("batch_size", LARGEST_BATCH)
    moments = setting.given.get("moments", "float32")
    while True:
        active = math.ceil(k or usual_k(setting.d_in))
        shape = StepShape(setting.d_in, d_sae, active, batch, moments=moments)
        parts = pace.step_parts(
            shape,
            setting.variant,
            products=built.encoder_products,
            fused=fused,
            half=half,
            pursues=rule is not None and rule.pursues,
        )
        step = pace.train * sum(parts.values())
        affordable = time / step * batch
        most = min(affordable, MOST * needed_tokens(d_sae), float(EPOCHS * setting.n_rows))
        tokens = float(setting.given.get("n_tokens", max(0.0, most)))
        small = batch <= SMALLEST_BATCH or "batch_size" in setting.given
        if small or tokens / batch >= STEPS:
            break
        batch //= 2
    width, rule = setting.d_in + setting.d_out, rule if fused else None
    memory = state_bytes(one_matrix(rule, width) * d_sae, fused=fused, moments=moments)
    memory += step_bytes(batch, d_sae, width, fused=fused)
    memory += pursuit_bytes(rule, batch, d_sae, setting.d_in, 2 if half else 4)
    return _Plan(d_sae, k, batch, half, step, memory, affordable, int(tokens))


def _sae(d_sae: int, setting: BudgetSetting) -> tuple[AbstractSAEConfig, float | int | None]:
    own: dict[str, Any] = {
        "variant": setting.variant,
        "d_sae": d_sae,
        **setting.given.get("sae", {}),
    }
    if "k" in variant(setting.variant).model_fields and "k" not in own:
        own["k"] = min(usual_k(setting.d_in), d_sae)
    sae = SAE_CONFIG.validate_python(own)
    return sae, own.get("k")


def _built(sae: AbstractSAEConfig, d_in: int) -> "tuple[AbstractSAE, FusedRule | None]":
    if sae.fitted_by is not None or sae.joint_problem is None:
        raise UsageError(
            f"No law here tells what a {sae.variant} SAE costs, so --budget cannot choose; give "
            "--d-sae and --n-tokens."
        )
    with torch.device("meta"):
        built = sae.build(d_in)
    rule = built.fused_rule()
    return built, None if isinstance(rule, str) else rule


def _chosen(best: _Plan, setting: BudgetSetting, pace: Pace, time: float) -> Chosen:
    needed = needed_tokens(best.d_sae)
    seconds = best.seconds_of(best.n_tokens) + pace.start
    times = f"{best.d_sae / setting.d_in:.3g} times the rows' width"
    told = []
    if "d_sae" not in setting.given:
        told.append(
            f"d_sae {best.d_sae}, {times}: the widest up to {WIDEST} times that gets "
            f"{'its' if 'n_tokens' in setting.given else f'the {si(needed)}'} tokens in time."
        )
    told.append(
        f"{si(best.n_tokens)} tokens: {best.n_tokens / setting.n_rows:.2g} times the store, in "
        f"{best.n_tokens // best.batch_size} steps of {best.batch_size}."
    )
    if best.k is not None and "k" not in setting.given.get("sae", {}):
        told.append(f"k {best.k:g}: 1.1 sqrt({setting.d_in}), the rows' width.")
    if "lr" not in setting.given:
        rate = 2e-4 / math.sqrt(best.d_sae / REFERENCE_WIDTH)
        told.append(f"lr {rate:.3g}: 2e-4 / sqrt(d_sae / 2^14).")
    if "n_tokens" not in setting.given and best.seconds_of(best.n_tokens) < 0.8 * time:
        held = best.n_tokens >= EPOCHS * setting.n_rows - best.batch_size
        why = f"the store is read {EPOCHS} times at most" if held else "more would add little"
        told.append(f"It needs less than the budget: {why}.")
    told.append(f"Planned: {duration(seconds)}, at {best.step * 1e3:.3g} ms a step ({pace.name}).")
    return Chosen(
        best.d_sae, best.k, best.batch_size, best.n_tokens, best.half, seconds, tuple(told)
    )


def pace_here(device: torch.device, memory: int, setting: BudgetSetting) -> Pace:
    """The pace of this machine: a measured kind of GPU's, or what is measured here and now.

    `memory` is what is free, in bytes.
    """
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else "this CPU"
    table = kinds()
    kind = next((kind for kind in table if kind.split("-")[-1].upper() in name.upper()), "h100")
    if cuda and kind.upper() in name.upper() and "steps" in table[kind]:
        return replace(pace_of_kind(kind), name=name, memory=float(memory))
    if cuda:
        base, rates = pace_of_kind(kind), measure_rates(device)
    else:
        base = pace_of_road(MEASURED / "road-cpu-1.json", pace_of_kind("h100"))
        rates = measure_rates(device, size=1024, rounds=5, dtype=torch.float32)
    return _timed(replace(base, name=name, memory=float(memory), rates=rates), setting, device)


def _timed(pace: Pace, setting: BudgetSetting, device: torch.device) -> Pace:
    """The pace, scaled so that a TopK step which is timed here takes what the law says."""
    cuda = device.type == "cuda"
    shape = StepShape(setting.d_in, 4 * setting.d_in, usual_k(setting.d_in), 1024)
    config = step_config("topk", shape, precision="bfloat16" if cuda else "float32")
    taken = time_step(config, shape, pace.rates, device, steps=5)
    fused = taken.way == "fused"
    law = sum(pace.step_parts(shape, "topk", products=1, fused=fused, half=cuda).values())
    slower = taken.seconds / law
    rates = Rates(pace.rates.matmul / slower, pace.rates.copy / slower)
    return replace(pace, rates=rates)
