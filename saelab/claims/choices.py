"""Mutual Choice and Feature Choice (arXiv 2411.02124): firings where they are worth most."""

import torch
from torch.nn import functional as F

from saelab.claims.claim import Claim
from saelab.claims.measures import fvus, l0s, share_silent
from saelab.claims.outcome import Outcome, over_seeds, ratios
from saelab.claims.setting import SAEs, Setting
from saelab.sae.topk import TopKConfig
from saelab.testing.planted import rows, zipf_values
from saelab.training.recipes import choices, planted_run, short_run

CHOICES = ("mutual-choice", "feature-choice")


def _planted(setting: Setting) -> Outcome:
    """128 features in 32 dimensions, most of them rare."""
    atoms = F.normalize(torch.randn(128, 32, generator=torch.Generator().manual_seed(5)), dim=1)
    train, test = (
        rows(zipf_values(n, 128, mean_active=4.0, seed=n), atoms, seed=n) for n in (40_000, 5000)
    )
    base = planted_run(setting.planted(train), TopKConfig(d_sae=128, k=4))
    base = base.model_copy(update={"n_tokens": 200_000})
    return _compared(setting.trained(choices(base)), test, 4)


def _heads(setting: Setting) -> Outcome:
    """The outputs of an attention layer's heads."""
    subject = setting.subject
    site = subject.sites.heads
    base = short_run(subject.store(), site, TopKConfig(d_sae=512, k=8))
    saes = setting.trained(subject.fitted(choices(base)))
    return _compared(saes, subject.held_out(site).x[site], 8)


def _compared(saes: SAEs, x: torch.Tensor, k: int) -> Outcome:
    """Errors and silent latents beside TopK's, at equal mean L0 on new rows."""
    error = {name: fvus(each, x) for name, each in saes.items()}
    silent = {name: [share_silent(sae, x) for sae in each] for name, each in saes.items()}
    to_topk = {n: over_seeds(ratios(error[n], error["topk"])) for n in CHOICES}
    shares = {name: over_seeds(each) for name, each in silent.items()}
    l0 = {name: over_seeds(l0s(saes[name], x)) for name in CHOICES}
    figures = {f"FVU, {name} / topk": ratio for name, ratio in to_topk.items()}
    figures |= {
        f"FVU, {name} / batch-topk": over_seeds(ratios(error[name], error["batch-topk"]))
        for name in CHOICES
    }
    figures |= {f"share of silent latents, {name}": share for name, share in shares.items()}
    figures |= {f"L0 of {name} for {k} asked": value for name, value in l0.items()}
    holds = {f"{name}: a lower error than TopK": r.below(1) for name, r in to_topk.items()}
    for name in CHOICES:
        pairs = zip(silent[name], silent["topk"], strict=True)
        holds[f"{name}: fewer silent latents than TopK, in each seed"] = all(
            a < b for a, b in pairs
        )
    near = all(abs(value.value / k - 1) < 0.1 for value in l0.values())
    holds[f"mean L0 within a tenth of {k}"] = near
    few = "Few latents are silent with TopK too, so seeds decide."
    return Outcome(figures=figures, holds=holds, reason="" if all(holds.values()) else few)


PLANTED = Claim(
    "choices-planted",
    "2411.02124",
    "Mutual and Feature Choice have a lower error than TopK at equal L0, and few dead latents.",
    "figures without values, and a table of dead latents (0 % for Feature Choice); GPT-2 small",
    "128 planted features, most of them rare; L0 4",
    _planted,
)
HEADS = Claim(
    "choices-heads",
    "2411.02124",
    "The same on a model's activations.",
    "figures without values, and a table of dead latents (0 % for Feature Choice); GPT-2 small",
    "tiny, blocks.2.attn.hook_z, 512 latents, L0 8",
    _heads,
    with_model=True,
)
