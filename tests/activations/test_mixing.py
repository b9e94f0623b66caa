import numpy as np
import pytest
import torch
from activations.store_cases import make_manifest

from saelab.activations.columns import Columns
from saelab.activations.format import SiteSpec
from saelab.activations.mixing import design_effect, mixing, served_contexts
from saelab.activations.order import EpochPlan
from saelab.activations.store import ActivationStore
from saelab.activations.writer import StoreWriter


def test_rows_of_distinct_contexts_are_as_good_as_independent_ones():
    assert design_effect(np.arange(100), 10, rho=0.3) == pytest.approx(1.0)


def test_rows_of_one_context_say_what_the_formula_says():
    """Var of a mean of n rows with correlation rho, over sigma^2 / n: 1 + (n - 1) rho."""
    assert design_effect(np.zeros(20, int), 10, rho=0.3) == pytest.approx(1 + 9 * 0.3)


def test_windows_are_averaged():
    contexts = np.array([0, 0, 1, 2])
    assert design_effect(contexts, 2, rho=0.5) == pytest.approx((1.5 + 1.0) / 2)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """40,960 contexts of 64 rows in 10 units: 2.6 M rows of one number."""
    manifest = make_manifest(
        sites=(SiteSpec(hook="a", d_in=1),),
        label_names=(),
        dtype="float16",
        context_length=64,
        contexts_per_unit=4096,
        n_contexts=40_960,
    )
    path = tmp_path_factory.mktemp("large") / "s"
    with StoreWriter.create(path, manifest) as writer:
        for unit in writer.missing_units():
            contexts = np.asarray(manifest.unit_contexts(unit))
            context, position = np.repeat(contexts, 64), np.tile(np.arange(64), 4096)
            tokens = np.zeros((4096, 64), np.int64)
            columns = Columns(np.zeros(len(context), int), position, context, context, tokens)
            writer.write_unit(unit, {"a": torch.zeros(len(context), 1)}, columns)
    return ActivationStore(path)


def test_the_default_order_mixes_almost_as_well_as_a_full_permutation(large):
    found = mixing(large)
    assert found.batch <= 1.05
    assert found.window <= 1.4
    assert (found.ideal_batch, found.ideal_window) == pytest.approx((1.01, 1.16), abs=0.005)


def test_the_shuffle_inside_units_is_needed(large):
    """With whole contexts one after the other, the same blocks, pool and seed mix worse."""
    plan = EpochPlan.create(large.blocks, 2**16, seed=0, epoch=0)
    starts = large.blocks.start[plan.group_blocks(0)]
    rows = (starts[:, None] + np.arange(1024)).ravel()[plan.row_order(0)]
    assert design_effect(rows // 64, 4096) > 1.2
    assert design_effect(served_contexts(large, 2**16), 4096) < 1.05
