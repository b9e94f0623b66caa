"""HierarchicalTopK (arXiv 2505.24473): one SAE for every budget."""

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
    to_own, cut = {}, {}
    for k in BUDGETS:
        one = [fvu(x, _with(every, x, k)) for every, _ in pairs]
        short = [fvu(x, _with(widest, x, k)) for _, widest in pairs]
        to_own[k], cut[k] = (over_seeds(ratios(each, own[k])) for each in (one, short))
    worst = max(to_own.values(), key=lambda ratio: ratio.value)
    return Outcome(
        figures={"FVU at the worst budget, one SAE / TopK trained for it": worst}
        | {f"FVU with {k} latents, one SAE / TopK for {k}": r for k, r in to_own.items()}
        | {f"FVU with {k} latents, TopK for 12 cut / TopK for {k}": r for k, r in cut.items()},
        holds={
            "within a quarter of TopK's error at every budget": worst.below(1.25),
            "far nearer than a cut TopK": all(
                cut[k].low > 1.25 * to_own[k].high for k in (2, 4, 8)
            ),
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
