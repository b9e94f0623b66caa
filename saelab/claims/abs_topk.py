"""AbsTopK (arXiv 2510.00404): a lower error at equal k, and two poles in one latent."""

from saelab.claims.claim import Claim
from saelab.claims.measures import cosines, fvus
from saelab.claims.outcome import Outcome, over_seeds, ratios
from saelab.claims.setting import Setting
from saelab.testing.planted import orthonormal_atoms, rows, uneven_values
from saelab.training.recipes import signed_features


def _signed(setting: Setting) -> Outcome:
    """48 orthogonal atoms with values of either sign; TopK of the same width, and of twice it."""
    atoms = orthonormal_atoms(48, 48)
    values = [uneven_values(n, 48, mean_active=3.0, signed=True, seed=n) for n in (40_000, 5000)]
    train, test = (rows(v, atoms, seed=len(v)) for v in values)
    saes = setting.trained(signed_features(setting.planted(train)))
    error = {name: fvus(each, test) for name, each in saes.items()}
    ratio = over_seeds(ratios(error["abs-topk"], error["topk"]))
    to_wide = over_seeds(ratios(error["abs-topk"], error["topk, twice as wide"]))
    nearest = [float(cosines(s, atoms).abs().amax(dim=0).mean()) for s in saes["abs-topk"]]
    found = over_seeds(nearest)
    return Outcome(
        figures={
            "FVU, AbsTopK / TopK": ratio,
            "FVU, AbsTopK / TopK of twice the width": to_wide,
            "cosine of planted atoms with AbsTopK's nearest": found,
        },
        holds={
            "less than half of TopK's error at equal width and k": ratio.below(0.5),
            "no larger error than TopK with twice as many latents": to_wide.value < 1.05,
            "finds the signed atoms": found.above(0.9),
        },
    )


SIGNED = Claim(
    "abs-topk-signed",
    "2510.00404",
    "With signed features AbsTopK does with one latent what TopK needs two for.",
    "none: argued from proximal operators, shown on contrastive pairs of words",
    "48 planted signed features",
    _signed,
)
