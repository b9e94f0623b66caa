"""A comparison of variants: trained on the same rows, measured on the same held-out text."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from saelab.bench.training_speed import training_speed
from saelab.config import UsageError
from saelab.evaluation.evaluate import evaluate
from saelab.evaluation.results import Evaluation
from saelab.lm.protocol import LanguageModel
from saelab.sae.variants import sized
from saelab.training.config import TrainConfig
from saelab.training.loop import train_many
from saelab.training.run import Run

FOUND = 0.8
"""A latent with at least this F1 on held-out text counts as having found a known feature."""


@dataclass(frozen=True)
class VariantFigures:
    """The figures of one trained SAE on text that no training saw.

    Attributes:
        ce_recovered, kl: None if the SAE reconstructs no activations.
        found: known features that some latent finds with F1 of 0.8 or more; None without labels.
        features: known features that are frequent enough to score; None without labels.
        tokens_per_second: speed of training this SAE alone on this device.
    """

    variant: str
    seed: int
    fvu: float
    l0: float
    ce_recovered: float | None
    kl: float | None
    found: int | None
    features: int | None
    dead: int
    tokens_per_second: float


def variant_configs(
    base: TrainConfig, variants: Sequence[str], *, out: Path, seeds: int = 1
) -> dict[Path, TrainConfig]:
    """`base` for every variant and seed, by the run's directory below `out`.

    Of `base.sae`, the width is kept, and k if the variant has one; other options have each
    variant's defaults. All runs read the rows in the same order, so they train from one read.

    Raises:
        UsageError: a name is no variant's.
    """
    configs, k = {}, base.sae.sparsity.k or 32
    for name, seed in product(variants, range(seeds)):
        sae = sized(name, base.sae.d_sae, k)
        changes = {"seed": base.seed + seed, "data_seed": base.order_seed}
        configs[out / f"{name}-{seed}"] = base.of(sae).model_copy(update=changes)
    return configs


def compare_variants(
    configs: dict[Path, TrainConfig],
    lm: LanguageModel,
    *,
    n_tokens: int,
    device: str | torch.device = "auto",
) -> list[VariantFigures]:
    """Train all runs that are not finished, then measure each on `n_tokens` held-out tokens.

    Raises:
        UsageError: as for `train_many` and `evaluate`.
    """
    figures = []
    for run in train_many(configs, device=device, lm=lm):
        speed = training_speed(run, device=device, lm=lm)
        figures.append(_figures(run, evaluate(run, lm, n_tokens=n_tokens), speed))
    return figures


def _figures(run: Run, result: Evaluation, speed: float) -> VariantFigures:
    spliced = run.config.sae.decoder_problem is None
    if spliced and not result.downstream:
        raise UsageError(f"{run.path}: {result.skipped['downstream']} Compare at another site.")
    known = None if result.recovery is None else result.recovery.features
    return VariantFigures(
        variant=run.config.sae.variant,
        seed=run.config.seed,
        fvu=float(result.reconstruction["fvu"]),
        l0=float(result.reconstruction["l0"]),
        ce_recovered=float(result.downstream["ce_recovered"]) if spliced else None,
        kl=float(result.downstream["kl"]) if spliced else None,
        found=None if known is None else sum(feature.f1 >= FOUND for feature in known),
        features=None if known is None else len(known),
        dead=int(result.reconstruction["dead"]),
        tokens_per_second=speed,
    )


def averages(results: Sequence[VariantFigures]) -> dict[str, dict[str, float]]:
    """For each variant, the mean of every figure over its seeds, without figures that are None."""
    by_variant: dict[str, list[VariantFigures]] = {}
    for result in results:
        by_variant.setdefault(result.variant, []).append(result)
    return {variant: _means(group) for variant, group in by_variant.items()}


def _means(group: Sequence[VariantFigures]) -> dict[str, float]:
    rows: list[dict[str, Any]] = [asdict(result) for result in group]
    names = [name for name in rows[0] if name not in ("variant", "seed")]
    known = [name for name in names if rows[0][name] is not None]
    return {name: sum(row[name] for row in rows) / len(rows) for name in known}
