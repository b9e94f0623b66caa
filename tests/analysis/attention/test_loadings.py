"""What goes along one attention weight is what its removal takes away from the frozen model."""

from dataclasses import replace

import pytest
import torch
from analysis.circuits.cases import hosts, prompt_of
from analysis.circuits.replay import Replay

from saelab.analysis.attention.dfa import direct_feature_attribution
from saelab.analysis.attention.loadings import attention_flow, head_loadings, score_by_kind
from saelab.analysis.circuits.frozen import Frozen, freeze
from saelab.analysis.circuits.targets import latent_target, logit_target

TOKEN, LAST = 3, 7


def without(frozen: Frozen, layer: int, head: int, dest: int, source: int) -> Frozen:
    """The frozen model with one attention weight at zero."""
    layers = list(frozen.record.layers)
    pattern = layers[layer].pattern.clone()
    pattern[0, head, dest, source] = 0
    layers[layer] = replace(layers[layer], pattern=pattern)
    return replace(frozen, record=replace(frozen.record, layers=tuple(layers)))


@pytest.fixture(scope="module")
def outer(lm64):
    """An SAE on the heads, one on attention's output, and both in one block."""
    sites = {"blocks.0.attn.hook_z": "topk", "blocks.1.hook_attn_out": "topk"}
    sites |= {"blocks.2.attn.hook_z": "abs-topk", "blocks.2.hook_attn_out": "jumprelu"}
    return freeze(lm64, hosts(lm64, sites), prompt_of(lm64))


def test_removing_the_weight_takes_away_what_it_gives(outer):
    def value(frozen):
        logits = Replay(frozen, hold=False).logits()[LAST]
        return float(logits[TOKEN] - logits.mean())

    target = logit_target(outer, TOKEN)
    found = head_loadings(outer, target, 4)
    assert len(found) == 4
    assert {loading.pairs.layer for loading in found} != {2}
    for one in found:
        at = one.pairs.layer, one.pairs.head, one.pairs.dest, one.pairs.source
        assert value(outer) - value(without(outer, *at)) == pytest.approx(one.gives, abs=1e-9)


def test_largest_come_first_and_none_is_of_a_token_to_itself(frozen):
    given = [abs(one.gives) for one in head_loadings(frozen, logit_target(frozen, TOKEN), 6)]
    assert given == sorted(given, reverse=True)
    assert all(
        one.pairs.source < one.pairs.dest
        for one in head_loadings(frozen, logit_target(frozen, TOKEN), 6)
    )
    assert head_loadings(frozen, logit_target(frozen, TOKEN), 0) == ()


@pytest.mark.parametrize("name", ["blocks.2.attn.hook_z", "blocks.2.hook_attn_out"])
def test_a_latents_own_layer_gives_it_its_direct_attribution(outer, name):
    number = next(i for i, active in enumerate(outer.actives) if active.name == name)
    (one, *_) = direct_feature_attribution(outer, 2, LAST, name=name)
    if name.endswith("attn_out"):
        # Through the latents of the SAE on its heads instead of through the heads as they are.
        outer = replace(outer, actives=tuple(a for a in outer.actives if a.place.kind != "heads"))
        number = next(i for i, active in enumerate(outer.actives) if active.name == name)
    flow = attention_flow(outer, latent_target(outer, number, one.latent, LAST))
    torch.testing.assert_close(flow[2][:, LAST].T, one.by_source_head, rtol=0, atol=1e-10)
    assert not bool(flow[2][:, :LAST].any())


def test_a_score_is_the_sum_of_what_its_pairs_are(outer):
    for one in head_loadings(outer, logit_target(outer, TOKEN), 3):
        parts = score_by_kind(one.pairs)
        assert sum(parts.values()) == pytest.approx(one.pairs.score, abs=1e-9)
        own = [i for i, node in enumerate(one.pairs.queries) if node.kind == "error"]
        other = [i for i, node in enumerate(one.pairs.keys) if node.kind == "error"]
        errors = float(one.pairs.products.sum())
        keep = one.pairs.products.clone()
        keep[own] = 0
        keep[:, other] = 0
        assert parts["errors"] == pytest.approx(errors - float(keep.sum()), abs=1e-9)
        assert one.values()["pairs"][0]["part"] == one.pairs.top(1)[0][2]
