"""BatchTopK (arXiv 2412.06410) and JumpReLU (arXiv 2407.14435): as many latents as a row needs."""

from dataclasses import replace

import torch
from torch.nn import functional as F

from saelab.claims.claim import Claim
from saelab.claims.measures import fvus, l0s, share_silent
from saelab.claims.outcome import Estimate, Outcome, over_seeds, ratios
from saelab.claims.setting import SAEs, Setting
from saelab.sae.topk import TopKConfig
from saelab.testing.planted import orthonormal_atoms, rows, uneven_values, zipf_values
from saelab.training.recipes import adaptive_counts, rare_features, uneven_counts

NO_SEED = 10**6
"""A seed that no training has: an SAE of the same seed could start at the planted atoms."""
TO_BATCH = "FVU, JumpReLU / BatchTopK"
ADAPTIVE = ("batch-topk", "jumprelu")


def _planted(setting: Setting) -> Outcome:
    """Rows with very different numbers of features."""
    atoms = orthonormal_atoms(32, 32)
    train, test = (
        rows(uneven_values(n, 32, mean_active=4.0, seed=n), atoms, seed=n) for n in (40_000, 5000)
    )
    return _compared(setting.trained(uneven_counts(setting.planted(train))), test, 4, by=0.5)


def _heads(setting: Setting) -> Outcome:
    """The outputs of an attention layer's heads."""
    subject = setting.subject
    site = subject.sites.heads
    saes = setting.trained(subject.fitted(adaptive_counts(subject.store(), site)))
    found = _compared(saes, subject.held_out(site).x[site], 8, by=1)
    both = found.figures[TO_BATCH]
    alike = both.above(0.8) and both.below(1.25)
    return replace(found, holds={**found.holds, "JumpReLU about equal to BatchTopK": alike})


def _compared(saes: SAEs, x: torch.Tensor, k: int, *, by: float | int) -> Outcome:
    """Whether either has less than `by` times TopK's error, and L0 near k on new rows."""
    error = {name: fvus(each, x) for name, each in saes.items()}
    to_topk = {n: over_seeds(ratios(error[n], error["topk"])) for n in ADAPTIVE}
    both = over_seeds(ratios(error["jumprelu"], error["batch-topk"]))
    l0 = {name: over_seeds(l0s(saes[name], x)) for name in ADAPTIVE}
    less = "less than half of TopK's error" if by < 1 else "a lower error than TopK"
    holds = {f"{name}: {less}": ratio.below(by) for name, ratio in to_topk.items()}
    return Outcome(
        figures={
            "FVU, BatchTopK / TopK": to_topk["batch-topk"],
            "FVU, JumpReLU / TopK": to_topk["jumprelu"],
            TO_BATCH: both,
        }
        | {f"L0 of {name} for {k} asked": value for name, value in l0.items()},
        holds=holds
        | {
            f"mean L0 within a tenth of {k}": all(abs(v.value / k - 1) < 0.1 for v in l0.values()),
        },
    )


def _silent_latents(setting: Setting) -> Outcome:
    """128 features in 32 dimensions, most of them rare; TopK and JumpReLU."""
    generator = torch.Generator().manual_seed(NO_SEED)
    atoms = F.normalize(torch.randn(128, 32, generator=generator), dim=1)
    train, test = (
        rows(zipf_values(n, 128, mean_active=4.0, seed=n), atoms, seed=n) for n in (40_000, 5000)
    )
    store = setting.planted(train)
    jump = rare_features(store)["jumprelu"]
    kinds = {"TopK": jump.model_copy(update={"sae": TopKConfig(d_sae=128, k=4)}), "JumpReLU": jump}
    found: dict[str, Estimate] = {}
    for name, config in kinds.items():
        without = config.sae.model_copy(update={"aux_coefficient": 0.0})
        recipe = {"with": config, "without": config.model_copy(update={"sae": without})}
        saes = setting.trained(recipe)
        silent = {n: [share_silent(sae, test) for sae in each] for n, each in saes.items()}
        error = {n: fvus(each, test) for n, each in saes.items()}
        less = [a - b for a, b in zip(silent["with"], silent["without"], strict=True)]
        found |= {
            f"share of silent latents, {name}, with AuxK - without": over_seeds(less),
            f"share of silent latents, {name} with AuxK": over_seeds(silent["with"]),
            f"FVU, {name}, with AuxK / without": over_seeds(
                ratios(error["with"], error["without"])
            ),
        }
    return Outcome(
        figures=found,
        holds={
            f"{name}: fewer silent latents with AuxK": found[
                f"share of silent latents, {name}, with AuxK - without"
            ].below(0)
            for name in kinds
        },
    )


PLANTED = Claim(
    "batch-topk-planted",
    "2412.06410",
    "BatchTopK and JumpReLU beat TopK where rows differ in how much there is to say.",
    "a figure without values; GPT-2 small, Gemma-2-2B",
    "32 planted features, L0 4",
    _planted,
)
HEADS = Claim(
    "batch-topk-heads",
    "2412.06410",
    "BatchTopK has a lower error than TopK at equal mean L0, and about that of JumpReLU.",
    "a figure without values; GPT-2 small, Gemma-2-2B",
    "tiny, blocks.2.attn.hook_z, L0 8",
    _heads,
    with_model=True,
)
AUX_K = Claim(
    "aux-k",
    "2406.04093",
    "AuxK leaves few latents silent.",
    "7 % silent with 16M latents (GPT-4); up to 90 % without",
    "128 planted features, most of them rare",
    _silent_latents,
)
