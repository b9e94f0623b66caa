"""Paths cut at weak latents, on the paper's own small example and on random models."""

from dataclasses import fields
from math import inf
from typing import Any

import pytest
import torch

from saelab.analysis.circuits.active import Active
from saelab.analysis.circuits.backward_walk import stop, walk_back
from saelab.analysis.circuits.frozen import Frozen
from saelab.analysis.circuits.hierarchical import hierarchical_attribution
from saelab.analysis.circuits.readings import logit_reading
from saelab.analysis.circuits.targets import Target, latent_target, logit_target
from saelab.lm.linear.paths import LayerWeights, ModelWeights, Norm
from saelab.lm.record import ForwardRecord, LayerRecord
from saelab.sae.affine import LinearCodes
from saelab.sites import Place


def t(*shape, fill=0.0):
    return torch.full(shape, fill, dtype=torch.float64)


def transcoder(layer, x, encoder, decoder):
    encoder, decoder = (torch.tensor(m, dtype=torch.float64) for m in (encoder, decoder))
    n = len(encoder)
    codes = LinearCodes(torch.zeros(n).long(), torch.arange(n), encoder[:, 0] * x, encoder, t(n))
    return Active(f"mlp {layer}", Place(layer, "mlp"), codes, decoder, t(1, 1), t(1, 1), t(1) == 0)


@pytest.fixture(scope="module")
def fixture():
    """mid1 = x @ W1, y = x + mid1 @ W2, mid2 = y @ W3, out = y + mid2 @ W4, at x = 1."""
    norm = Norm.gain_only(t(1, fill=1.0))
    heads = Norm.gain_only(t(1, 1, fill=1.0))
    norms: dict[str, Any] = dict.fromkeys(("ln1", "ln2", "attn_post", "mlp_post"), norm)
    norms |= dict.fromkeys(("q_norm", "k_norm"), heads)
    none: dict[str, Any] = dict.fromkeys(("W_Q", "W_K", "W_V", "W_O"), t(1, 1, 1))
    none |= dict.fromkeys(("b_Q", "b_K", "b_V"), t(1, 1))
    block = LayerWeights(**none, b_O=t(1), **norms, rotary=None, scaling=1.0)
    model = ModelWeights(t(1, 1, fill=1.0), None, (block, block), norm, t(1, 1, fill=1.0), t(1))
    actives = (
        transcoder(0, 1.0, [[1.0], [2.0]], [[1.0], [1.0]]),
        transcoder(1, 4.0, [[1.0], [1.0]], [[2.0], [1.0]]),
    )
    one, zero = t(1, 1, 1, fill=1.0), t(1, 1, 1, 1)
    per_head = dict.fromkeys(("q_scale", "k_scale", "q", "k", "v", "pattern", "z"), zero)
    names = [field.name for field in fields(LayerRecord)]
    layers = [LayerRecord(**(dict.fromkeys(names, one) | per_head)) for _ in actives]
    record = ForwardRecord(torch.zeros(1, 1).long(), one, t(1, 1, 1), tuple(layers), 16 * one, one)
    return Frozen(model, record, actives)


def target_of(fixture) -> Target:
    coefficients = t(1, fill=1.0)
    return Target(
        "out", logit_reading(fixture, 0, coefficients), 16.0, 0, coefficients=coefficients
    )


def test_the_papers_example_has_its_direct_effects(fixture):
    # P3.3
    direct = walk_back(fixture, target_of(fixture).reading, stop).gradient[0] * fixture.values
    assert direct.tolist() == [1, 2, 8, 4]


def test_the_papers_example_has_its_attributions(fixture):
    found = hierarchical_attribution(fixture, target_of(fixture))
    assert found.latents.tolist() == [4, 8, 8, 4]
    assert found.recovered == 1
    cut = hierarchical_attribution(fixture, target_of(fixture), 5.0)
    assert cut.latents.tolist() == [3, 6, 8, 4]
    assert cut.kept.tolist() == [False, True, True, False]


def test_without_a_threshold_it_is_plain_attribution(frozen):
    # P3.2
    target = logit_target(frozen, 3)
    plain = walk_back(frozen, target.reading)
    found = hierarchical_attribution(frozen, target, -inf)
    assert torch.equal(found.latents, plain.gradient[0] * frozen.values)
    assert found.recovered == pytest.approx(1.0, abs=1e-9)
    all_of = hierarchical_attribution(frozen, target, -1e300, signed=True)
    assert torch.equal(all_of.latents, found.latents)


def test_kept_latents_are_above_the_threshold_and_signs_may_be_ignored(frozen):
    target = logit_target(frozen, 3)
    share = 0.02 * abs(target.value)
    signed = hierarchical_attribution(frozen, target, share)
    both = hierarchical_attribution(frozen, target, share, signed=False)
    assert bool((signed.latents[signed.kept] > share).all())
    assert bool((both.latents[both.kept].abs() > share).all())
    assert bool((both.latents[both.kept] < 0).any())
    assert 0 < int(signed.kept.sum()) < len(frozen.values)


def test_nothing_passes_an_infinite_threshold(frozen):
    target = latent_target(frozen, 3, int(frozen.actives[3].codes.latent[-1]), 7)
    found = hierarchical_attribution(frozen, target, inf)
    direct = walk_back(frozen, target.reading, stop)
    assert torch.equal(found.leaves, direct.leaves[0])
    assert not found.kept.any()
