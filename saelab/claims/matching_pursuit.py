"""MP-SAE (arXiv 2506.03093): coherent atoms, as long as those that occur together are not."""

from saelab.claims.claim import Claim
from saelab.claims.measures import fvus, share_found
from saelab.claims.outcome import Outcome, over_seeds, ratios
from saelab.claims.setting import Setting
from saelab.testing.planted import group_atoms, group_values, rows
from saelab.training.recipes import coherent_groups


def _measure(setting: Setting) -> Outcome:
    """Atoms of a group lie in one plane; a row has atoms of three orthogonal groups."""
    atoms = group_atoms(6, 6, space=2)
    train, test = (
        rows(group_values(n, 6, 6, active=3, seed=n), atoms, seed=n) for n in (40_000, 5000)
    )
    saes = setting.trained(coherent_groups(setting.planted(train)))
    error = {name: fvus(each, test) for name, each in saes.items()}
    ratio = over_seeds(ratios(error["matching-pursuit"], error["topk"]))
    found = {
        name: over_seeds([share_found(sae, atoms) for sae in each]) for name, each in saes.items()
    }
    return Outcome(
        figures={"FVU, MP-SAE / TopK": ratio}
        | {f"atoms found, {name}": share for name, share in found.items()},
        holds={
            "less than half of TopK's error": ratio.below(0.5),
            "finds the atoms that TopK misses": found["matching-pursuit"].low > found["topk"].high,
        },
    )


COHERENT = Claim(
    "matching-pursuit",
    "2506.03093",
    "MP-SAE finds atoms that are orthogonal only where they occur together; TopK does not.",
    "figures without values (planted trees; vision models)",
    "36 planted atoms in 6 planes, k 3",
    _measure,
)
