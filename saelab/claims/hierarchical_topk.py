"""HierarchicalTopK (arXiv 2505.24473): one SAE for every budget."""

from saelab.claims.claim import Claim
from saelab.claims.measures import fvu, fvus
from saelab.claims.outcome import Outcome, over_seeds
from saelab.claims.setting import Setting
from saelab.pursuit.select import top_k
from saelab.sae.hierarchical_topk import HierarchicalTopK
from saelab.sae.topk import TopK
from saelab.training.recipes import every_budget

BUDGETS = (2, 4, 8, 12)


def _measure(setting: Setting) -> Outcome:
    """One SAE at four budgets, TopK trained for each, and TopK trained for 12, cut to each."""
    subject = setting.subject
    site = subject.sites.residual
    x = subject.held_out(site).x[site]
    saes = setting.trained(subject.fitted(every_budget(subject.store(), site)))
    own = {k: fvus(saes[f"topk {k}"], x) for k in BUDGETS}
    to_own, cut = {}, {}
    for k in BUDGETS:
        one, short = [], []
        for seed in setting.seeds:
            every, widest = saes["hierarchical-topk"][seed], saes["topk 12"][seed]
            assert isinstance(every, HierarchicalTopK)
            assert isinstance(widest, TopK)
            one.append(fvu(x, every.decode(every.encode(x, budget=k))) / own[k][seed])
            coded = widest.decode(top_k(widest.pre_activations(x), k))
            short.append(fvu(x, coded) / own[k][seed])
        to_own[k], cut[k] = over_seeds(one), over_seeds(short)
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


EVERY_BUDGET = Claim(
    "hierarchical-topk",
    "2505.24473",
    "One SAE is as good at every budget as TopK trained for it.",
    "a figure without values (Gemma-2-2B)",
    "tiny, blocks.2.hook_resid_post, 2 to 12 latents",
    _measure,
    with_model=True,
)
