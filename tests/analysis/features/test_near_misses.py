"""Near misses against the pre-activations sorted by hand, for every way of choosing."""

import pytest
import torch

from saelab.analysis.features.near_misses import codes_and_near_misses
from saelab.sae.preselecting import Preselecting
from saelab.sae.variants import SAE_CONFIG

D_IN, D_SAE, ROWS = 6, 24, 40
VARIANTS = ["topk", "k-sparse", "abs-topk", "batch-topk", "jumprelu", "hierarchical-topk"]


def build(variant):
    config = SAE_CONFIG.validate_python({"variant": variant, "d_sae": D_SAE, "k": 4})
    sae = config.build(D_IN, torch.Generator().manual_seed(0))
    rows = torch.randn(ROWS, D_IN, generator=torch.Generator().manual_seed(1))
    sae.calibrate(rows)
    return sae, rows


def pre_activations(sae, x):
    assert isinstance(sae, Preselecting)
    return sae.pre_activations(x)


def threshold(sae):
    assert isinstance(sae.threshold, torch.Tensor)
    return sae.threshold


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_they_are_the_largest_pre_activations_that_did_not_fire(variant):
    sae, x = build(variant)
    codes, found = codes_and_near_misses(sae, x, 3)
    assert found is not None
    pre, fired = pre_activations(sae, x), codes.dense() != 0
    size = (pre.abs() if variant == "abs-topk" else pre).masked_fill(fired, -1)
    if variant == "jumprelu":
        size = size / threshold(sae)
    for row in range(ROWS):
        mine = found.latent[found.row == row]
        if not fired[row].any() and variant not in ("jumprelu", "batch-topk"):
            assert not len(mine)
            continue
        best = size[row].topk(3).indices
        assert mine.tolist() == best[size[row][best] > 0].tolist()
    assert torch.equal(found.pre_activation, pre[found.row, found.latent])
    assert not fired[found.row, found.latent].any()


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_they_fire_where_the_bar_is_lowered_to_their_closeness(variant):
    """Closeness 1 would just fire, so it is the share of the smallest firing or the threshold."""
    sae, x = build(variant)
    codes, found = codes_and_near_misses(sae, x, 5)
    assert found is not None
    assert len(found.row)
    assert bool(((found.closeness > 0) & (found.closeness <= 1)).all())
    bar = found.pre_activation.abs() / found.closeness
    if variant == "jumprelu":
        expected = threshold(sae)[found.latent]
    elif variant == "batch-topk":
        expected = threshold(sae).expand_as(bar)
    else:
        sizes = codes.dense().abs()
        expected = sizes.masked_fill(sizes == 0, torch.inf).amin(dim=1)[found.row]
    assert torch.allclose(bar, expected, rtol=1e-5)


@torch.no_grad()
def test_a_pursuit_has_none_and_none_are_kept_where_none_are_wanted():
    sae, x = build("matching-pursuit")
    assert codes_and_near_misses(sae, x, 3)[1] is None
    sae, x = build("topk")
    assert codes_and_near_misses(sae, x, 0)[1] is None


@torch.no_grad()
def test_a_threshold_of_zero_has_none():
    sae, x = build("jumprelu")
    threshold(sae).zero_()
    _, found = codes_and_near_misses(sae, x, 3)
    assert found is not None
    assert not len(found.row)
