"""The tiny model's activations, harvested once, and its held-out text."""

import pytest


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """150,000 tokens at the three sites of the recipes; the path."""
    from saelab.activations.corpus import load_corpus
    from saelab.activations.harvest import HarvestOptions, harvest
    from saelab.lm.hf import load_hugging_face_model
    from saelab.training.recipes import TINY_ATTENTION, TINY_EARLY, TINY_RESIDUAL

    lm = load_hugging_face_model("tiny", device="cpu")
    out = tmp_path_factory.mktemp("claims") / "store"
    sites = [TINY_EARLY, TINY_RESIDUAL, TINY_ATTENTION]
    return harvest(
        lm, sites, load_corpus("tiny", lm), out=out, options=HarvestOptions(150_000)
    ).path


@pytest.fixture(scope="session")
def held_out(tiny_lm):
    """19,050 rows of text that no SAE was trained on."""
    from claims.measure import HeldOut

    from saelab.training.recipes import TINY_ATTENTION, TINY_EARLY, TINY_RESIDUAL

    return HeldOut.read(tiny_lm, [TINY_EARLY, TINY_RESIDUAL, TINY_ATTENTION], n_contexts=150)


@pytest.fixture(scope="session")
def budgets(store, tmp_path_factory):
    """The recipe `every_budget` with one seed; its TopK SAEs are also end-to-end's baseline."""
    from claims.measure import trained

    from saelab.training.recipes import every_budget

    saes = trained(every_budget(store), tmp_path_factory.mktemp("budgets"), seeds=1)
    return {name: each[0] for name, each in saes.items()}


@pytest.fixture(scope="session")
def on_heads(store, tmp_path_factory):
    """The recipe `adaptive_counts` on the heads' outputs, with one seed."""
    from claims.measure import trained

    from saelab.training.recipes import TINY_ATTENTION, adaptive_counts

    out = tmp_path_factory.mktemp("heads")
    saes = trained(adaptive_counts(store, TINY_ATTENTION), out, seeds=1)
    return {name: each[0] for name, each in saes.items()}


@pytest.fixture(scope="session")
def subject(tmp_path_factory, tiny_lm):
    """The tiny model; its stores and held-out texts are made once for all claims."""
    from saelab.claims.subject import Subject

    subject = Subject(tmp_path_factory.mktemp("subject"), device="cpu")
    subject.lm = tiny_lm
    return subject


@pytest.fixture
def setting(subject, tmp_path):
    """One seed, in a directory of its own. `saelab claims` measures with more."""
    from saelab.claims.setting import Setting

    return Setting(tmp_path, subject, n_seeds=1)
