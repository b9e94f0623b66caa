"""Matryoshka (arXiv 2503.17547): general latents keep firing where special ones do."""

import torch

from saelab.claims.claim import Claim
from saelab.claims.measures import cosines, l0s, on, share_found
from saelab.claims.outcome import Outcome, over_seeds
from saelab.claims.setting import Setting
from saelab.sae.base import AbstractSAE
from saelab.testing.planted import orthonormal_atoms, rows, tree_values
from saelab.training.recipes import absorption

PARENTS, CHILDREN = 4, 4
ACTIVE = 2.04


def _tree(n: int) -> torch.Tensor:
    return tree_values(n, PARENTS, CHILDREN, parent_rate=0.3, child_rate=0.7, seed=n)


def _measure(setting: Setting) -> Outcome:
    """How often a parent's latent is silent under a child, for Matryoshka and for BatchTopK."""
    atoms = orthonormal_atoms(PARENTS * (1 + CHILDREN), PARENTS * (1 + CHILDREN))
    values = _tree(5000)
    test = rows(values, atoms, seed=2)
    store = setting.planted(rows(_tree(40_000), atoms, seed=1))
    saes = setting.trained(absorption(store))
    rates = {
        name: [silent(sae, atoms, values, test) for sae in each] for name, each in saes.items()
    }
    absorbed = {name: over_seeds([a for a, _ in each]) for name, each in rates.items()}
    less = over_seeds(
        [a[0] - b[0] for a, b in zip(rates["matryoshka"], rates["batch-topk"], strict=True)]
    )
    alone = max(rate for each in rates.values() for _, rate in each)
    l0 = {name: over_seeds(l0s(each, test)) for name, each in saes.items()}
    found = {
        name: over_seeds([share_found(sae, atoms) for sae in each]) for name, each in saes.items()
    }
    return Outcome(
        figures={"absorbed, Matryoshka - BatchTopK": less}
        | {f"absorbed, {name}": rate for name, rate in absorbed.items()}
        | {f"atoms found, {name}": share for name, share in found.items()}
        | {f"L0, {name}": value for name, value in l0.items()},
        holds={
            "absorbs less": less.below(0),
            # Alone every parent has its latent in both, so what is missing was absorbed.
            "not because it has unlearned the parents": alone < 0.02,
            "at the same L0": all(abs(v.value / ACTIVE - 1) < 0.05 for v in l0.values()),
        },
    )


def silent(
    sae: AbstractSAE, atoms: torch.Tensor, values: torch.Tensor, x: torch.Tensor
) -> tuple[float, float]:
    """How often a parent's latent is silent while the parent is on: with a child, and alone.

    A parent's latent is the one whose atom is nearest to the parent's.
    """
    latents = cosines(sae, atoms[:PARENTS]).argmax(dim=0)
    quiet = (sae.encode(on(sae, x)).dense()[:, latents] == 0).cpu()
    parent = values[:, :PARENTS] > 0
    child = (values[:, PARENTS:] > 0).view(-1, PARENTS, CHILDREN).any(dim=2)
    return float(quiet[child].float().mean()), float(quiet[parent & ~child].float().mean())


ABSORPTION = Claim(
    "matryoshka",
    "2503.17547",
    "Matryoshka SAEs absorb general features into special ones far less than BatchTopK.",
    "absorption about 0.03 against 0.29 (Gemma-2-2B L12; not verified)",
    "4 planted parents with 4 children each",
    _measure,
)
