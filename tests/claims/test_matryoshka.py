"""Matryoshka (arXiv 2503.17547): general latents keep firing where special ones do."""

import pytest
from claims.measure import cosines, l0s, mean, planted_store, trained

from saelab.testing.planted import orthonormal_atoms, rows, tree_values
from saelab.training.recipes import absorption

PARENTS, CHILDREN = 4, 4


def tree(n):
    return tree_values(n, PARENTS, CHILDREN, parent_rate=0.3, child_rate=0.7, seed=n)


@pytest.mark.slow
def test_it_absorbs_less_than_batch_topk_on_a_tree(tmp_path):
    """Measured, seeds 0 to 5: absorbed 0.00 to 0.08 against 0.11 to 0.34, at equal L0."""
    atoms = orthonormal_atoms(PARENTS * (1 + CHILDREN), PARENTS * (1 + CHILDREN))
    values = tree(5000)
    test = rows(values, atoms, seed=2)
    store = planted_store(tmp_path, rows(tree(40_000), atoms, seed=1))
    saes = trained(absorption(store), tmp_path / "runs", seeds=2)
    rates = {
        name: [silent(sae, atoms, values, test) for sae in each] for name, each in saes.items()
    }
    with_child = {name: mean([a for a, _ in each]) for name, each in rates.items()}
    assert with_child["batch-topk"] > 0.1
    assert with_child["matryoshka"] < 0.4 * with_child["batch-topk"]
    # Alone, every parent has its latent in both: what is missing was absorbed, not unlearned.
    assert max(alone for each in rates.values() for _, alone in each) < 0.02
    for each in saes.values():
        assert mean(l0s(each, test)) == pytest.approx(2.04, rel=0.05)
    found = {name: mean([near(sae, atoms) for sae in each]) for name, each in saes.items()}
    assert found["matryoshka"] > found["batch-topk"] + 0.2


def silent(sae, atoms, values, x) -> tuple[float, float]:
    """How often a parent's latent is silent while the parent is on: with a child, and alone.

    A parent's latent is the one whose atom is nearest to the parent's.
    """
    latents = cosines(sae, atoms[:PARENTS]).argmax(dim=0)
    quiet = sae.encode(x).dense()[:, latents] == 0
    parent = values[:, :PARENTS] > 0
    child = (values[:, PARENTS:] > 0).view(-1, PARENTS, CHILDREN).any(dim=2)
    return float(quiet[child].float().mean()), float(quiet[parent & ~child].float().mean())


def near(sae, atoms) -> float:
    """Share of the planted atoms that some learned atom equals (cosine above 0.95)."""
    return float((cosines(sae, atoms).max(dim=0).values > 0.95).float().mean())
