"""HierarchicalTopK (arXiv 2505.24473): one SAE for every budget."""

from statistics import fmean

import torch
from torch import Tensor

from saelab.claims.claim import Claim
from saelab.claims.measures import fvu, fvus
from saelab.claims.outcome import Outcome, over_seeds, ratios
from saelab.claims.setting import Setting
from saelab.pursuit.select import top_k
from saelab.sae.base import AbstractSAE
from saelab.training.recipes import every_budget

BUDGETS = (2, 4, 8, 12)


def _measure(setting: Setting) -> Outcome:
    """One SAE at four budgets, TopK trained for each, and TopK trained for 12, cut to each."""
    subject = setting.subject
    site = subject.sites.residual
    x = subject.held_out(site).x[site]
    saes = setting.trained(subject.fitted(every_budget(subject.store(), site)))
    own = {k: fvus(saes[f"topk {k}"], x) for k in BUDGETS}
    pairs = list(zip(saes["hierarchical-topk"], saes["topk 12"], strict=True))
    to_own: dict[int, list[float]] = {}
    cut: dict[int, list[float]] = {}
    for k in BUDGETS:
        to_own[k] = ratios([fvu(x, _with(every, x, k)) for every, _ in pairs], own[k])
        cut[k] = ratios([fvu(x, _with(widest, x, k)) for _, widest in pairs], own[k])
    worst = over_seeds([max(to_own[k][seed] for k in BUDGETS) for seed in setting.seeds])
    smaller = BUDGETS[:-1]
    nearer = over_seeds(
        [
            fmean(to_own[k][i] for k in smaller) / fmean(cut[k][i] for k in smaller)
            for i in setting.seeds
        ]
    )
    return Outcome(
        figures={"FVU at the worst budget, one SAE / TopK trained for it": worst}
        | {"FVU at smaller budgets, one SAE / TopK for 12, cut": nearer}
        | {f"FVU with {k} latents, one SAE / TopK for {k}": over_seeds(to_own[k]) for k in BUDGETS}
        | {f"FVU with {k}, TopK for 12 cut / TopK for {k}": over_seeds(cut[k]) for k in smaller},
        holds={
            "within a quarter of TopK's error at every budget": worst.below(1.25),
            "nearer than a cut TopK": nearer.below(1),
        },
    )


@torch.no_grad()
def _with(sae: AbstractSAE, x: Tensor, k: int) -> Tensor:
    """The reconstruction from the k largest latents."""
    encoder = sae.affine_encoder()
    assert encoder is not None
    return sae.decode(top_k(encoder.pre_activations(x), k))


EVERY_BUDGET = Claim(
    "hierarchical-topk",
    "2505.24473",
    "One SAE is as good at every budget as TopK trained for it.",
    "a figure without values (Gemma-2-2B)",
    "tiny, blocks.2.hook_resid_post, 2 to 12 latents",
    _measure,
    with_model=True,
)
