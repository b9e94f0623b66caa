"""MDL-SAE (arXiv 2410.11179): SAEs as the shortest description of activations."""

import torch

from saelab.claims.claim import Claim
from saelab.claims.outcome import Outcome, over_seeds, ratios
from saelab.claims.setting import Setting
from saelab.evaluation.mdl import DescriptionLength, description_length
from saelab.evaluation.mdl_sweep import LengthCurve, RunLength, length_curve
from saelab.evaluation.rows import Rows, RowSample
from saelab.sae.base import AbstractSAE
from saelab.sae.topk import TopKConfig
from saelab.testing.planted import orthonormal_atoms, rows
from saelab.training.recipes import planted_run, steering_filter

WIDTH, ACTIVE = 32, 4
TOLERANCE = 0.005


def _planted(setting: Setting) -> Outcome:
    """SAEs of four widths and three k on rows of 4 among 32 orthogonal atoms.

    Dead latents cost no bits, so a wider SAE with as many living ones may be as short.
    """
    atoms = orthonormal_atoms(WIDTH, WIDTH)
    generator = torch.Generator().manual_seed(0)
    on = torch.rand(40_000, WIDTH, generator=generator).argsort(dim=1) < ACTIVE
    x = rows(on * (0.5 + torch.rand(on.shape, generator=generator)), atoms)
    store = setting.planted(x)
    recipe = {
        f"{d_sae}, {k}": planted_run(store, TopKConfig(d_sae=d_sae, k=k))
        for d_sae in (16, 32, 64, 128)
        for k in (2, 4, 8)
    }
    runs = setting.runs(recipe)
    curves = [
        length_curve([runs[name][seed] for name in recipe], device=setting.device)
        for seed in setting.seeds
    ]
    best = [curve.best for curve in curves]
    living = over_seeds([(run.d_sae - run.dead) / WIDTH for run in best])
    found_k = over_seeds([float(run.k or 0) / ACTIVE for run in best])
    narrow, dense = (
        over_seeds([curve.best.bits / _at(curve, *size).bits for curve in curves])
        for size in ((WIDTH // 2, ACTIVE), (WIDTH, 2 * ACTIVE))
    )
    rows_alone = over_seeds([curve.best.bits / curve.row_bits for curve in curves])
    return Outcome(
        figures={
            "living latents of the shortest / true atoms": living,
            "k of the shortest / true k": found_k,
            "width of the shortest": over_seeds([run.d_sae for run in best]),
            "bits, the shortest / half the width": narrow,
            "bits, the shortest / twice the k": dense,
            "bits, the shortest / rows without an SAE": rows_alone,
        },
        holds={
            "as many living latents as true atoms, to a tenth": abs(living.value - 1) < 0.1,
            "the true k": found_k.value == 1,
            "half the width and twice the k cost more": narrow.below(1) and dense.below(1),
            "shorter than the rows without an SAE": rows_alone.below(1),
        },
    )


def _at(curve: LengthCurve, d_sae: int, k: int) -> RunLength:
    return next(run for run in curve.runs if (run.d_sae, run.k) == (d_sae, k))


def _activations(setting: Setting) -> Outcome:
    """Bits of an SAE's codes and of the rounded activations themselves, at equal FVU."""
    subject = setting.subject
    site = subject.sites.residual
    recipe = subject.fitted(steering_filter(subject.store(), site))
    x = subject.held_out(site).x[site]
    found = [_described(sae, x) for sae in setting.trained(recipe)["topk"]]
    codes = [level.chosen.bits for level in found if level.chosen is not None]
    dense = [level.dense_bits for level in found if level.dense_bits is not None]
    ratio = over_seeds(ratios(codes, dense))
    return Outcome(
        figures={
            "bits per token, codes / activations": ratio,
            "bits per token, codes": over_seeds(codes),
            "bits per token, activations": over_seeds(dense),
        },
        holds={"less than half as long as the activations": ratio.below(0.5)},
    )


def _described(sae: AbstractSAE, x: torch.Tensor) -> DescriptionLength:
    nothing = torch.zeros(len(x), dtype=torch.long)
    sample = RowSample()
    sample.add(Rows(x, sae.encode(x), token=nothing, fit=nothing.bool()))
    found = description_length(sample.rows(), sae, tolerance=TOLERANCE)
    assert isinstance(found, DescriptionLength)
    return found


PLANTED = Claim(
    "mdl-planted",
    "2410.11179",
    "The description is shortest near the true width and k.",
    "MNIST: shortest where latents are segments of lines, between pixels and whole digits",
    f"{ACTIVE} of {WIDTH} planted atoms; 12 SAEs, 16 to 128 latents, k 2 to 8",
    _planted,
)
ACTIVATIONS = Claim(
    "mdl-activations",
    "2410.11179",
    "Codes describe activations in far fewer bits than the activations themselves.",
    "1,405 against 5,376 bits per token (GPT-2 small)",
    "tiny, blocks.2.hook_resid_post, 256 latents, k 12",
    _activations,
    with_model=True,
)
