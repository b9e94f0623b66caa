"""End-to-end training (arXiv 2405.12241): fewer active latents for the same loss of the model."""

import math
from collections.abc import Mapping
from itertools import pairwise

from saelab.claims.claim import Claim
from saelab.claims.measures import l0s
from saelab.claims.outcome import Outcome, over_seeds
from saelab.claims.setting import Setting
from saelab.training.recipes import end_to_end

PAPER = 0.45


def _measure(setting: Setting) -> Outcome:
    """TopK with 2 latents end to end; local training with 2, 4, 8 and 12."""
    subject = setting.subject
    site = subject.sites.residual
    text = subject.held_out(site)
    recipe = end_to_end(subject.store(), site)
    saes = setting.trained(subject.fitted({n: c for n, c in recipe.items() if n != "e2e-ds 2"}))
    increase = {n: [text.ce_increase(sae, site) for sae in each] for n, each in saes.items()}
    local = {k: increase[f"local {k}"] for k in (2, 4, 8, 12)}
    active = l0s(saes["e2e 2"], text.x[site])
    share = [
        active[seed] / latents_for(increase["e2e 2"][seed], {k: v[seed] for k, v in local.items()})
        for seed in setting.seeds
    ]
    found = over_seeds(share)
    means = {f"CE increase, {name}": over_seeds(each) for name, each in increase.items()}
    return Outcome(
        figures={"active latents, e2e / local at equal CE increase": found} | means,
        holds={
            "fewer active latents for the same CE increase": found.below(1),
            "under 45 % of them": found.below(PAPER),
        },
        reason="With 2 latents each one is half of the code; the paper's SAEs have tens.",
    )


def latents_for(increase: float, local: Mapping[int, float]) -> float:
    """L0 of local training with this CE increase, between the measured ones.

    The logarithm of the increase is linear in L0 between neighbours; beyond the ends the nearest
    measured L0 is returned.
    """
    ks = sorted(local)
    for low, high in pairwise(ks):
        if local[high] <= increase <= local[low]:
            above, below = math.log(local[low]), math.log(local[high])
            return low + (high - low) * (above - math.log(increase)) / (above - below)
    return ks[0] if increase > local[ks[0]] else ks[-1]


FEWER_LATENTS = Claim(
    "end-to-end",
    "2405.12241",
    "End-to-end SAEs need under 45 % of the active latents for the same CE increase.",
    "under 45 % (GPT-2 small, blocks 2, 6, 10)",
    "tiny, blocks.2.hook_resid_post, 2 latents",
    _measure,
    with_model=True,
)
