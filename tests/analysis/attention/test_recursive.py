"""Components of the stream, and attributions through it, add up."""

import pytest
import torch
from analysis.circuits.cases import frozen_of, hosts, prompt_of, random_transcoder

from saelab.analysis.attention.components import residual_components
from saelab.analysis.attention.dfa import direct_feature_attribution
from saelab.analysis.attention.qk import score_pairs
from saelab.analysis.attention.recursive import (
    RecursionOptions,
    recursive_attribution,
    source_attribution,
)
from saelab.analysis.circuits.frozen import freeze
from saelab.sites import Place

HEADS = {f"blocks.{layer}.attn.hook_z": "topk" for layer in range(3)}
CLOSE = {"rtol": 0, "atol": 1e-11}


@pytest.fixture(scope="module")
def heads(lm64):
    """Attention SAEs in every layer, none on the stream, a transcoder in block 0."""
    return frozen_of(lm64, HEADS, transcoder=0)


@pytest.fixture(scope="module")
def skipping(lm64):
    """The same with transcoders that skip, in blocks 0 and 1."""
    skips = [random_transcoder(lm64, layer, skip=True) for layer in (0, 1)]
    return freeze(lm64, [*hosts(lm64, HEADS), *skips], prompt_of(lm64))


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_components_sum_to_the_stream(frozen, heads, skipping, layer):
    for prompt in (frozen, heads, skipping):
        layers = prompt.record.layers
        resid = prompt.record.resid_final if layer == 3 else layers[layer].resid_pre
        for position in (0, 6):
            parts = residual_components(prompt, layer, position)
            torch.testing.assert_close(parts.vectors.sum(0), resid[0, position], **CLOSE)
            past = residual_components(prompt, layer, position, use_residual_saes=False)
            torch.testing.assert_close(past.vectors.sum(0), resid[0, position], **CLOSE)


def test_an_sae_on_the_stream_stands_for_all_below(frozen):
    names = {node.name for node in residual_components(frozen, 1, 4).nodes}
    assert names == {"blocks.1.hook_resid_pre", "b_dec blocks.1.hook_resid_pre"}
    past = {n.kind for n in residual_components(frozen, 1, 4, use_residual_saes=False).nodes}
    assert {"embedding", "position", "mlp", "latent", "error"} <= past


def test_what_a_skip_carries_belongs_to_what_it_read(skipping):
    """Second method: the embedding alone through norms at their scales and both skip matrices."""
    parts = residual_components(skipping, 2, 5)
    alone = skipping.record.embed[0, 5]
    for layer in (0, 1):
        weights, record = skipping.weights.layers[layer], skipping.record.layers[layer]
        x = alone - alone.mean() if weights.ln2.centred else alone
        W = skipping.actives[skipping.at_place[Place(layer, "mlp")]].skip.W
        alone = alone + x / record.ln2_scale[0, 5] * weights.ln2.gain @ W
    (mine,) = (v for n, v in zip(parts.nodes, parts.vectors, strict=True) if n.kind == "embedding")
    torch.testing.assert_close(mine, alone, **CLOSE)


@pytest.mark.parametrize("layer", [1, 2])
def test_pairs_sum_to_the_score_past_a_skip(skipping, layer):
    record = skipping.record.layers[layer]
    expected = float(skipping.weights.layers[layer].scores(record.q, record.k)[0, 1, 6, 3])
    assert score_pairs(skipping, layer, 1, 6, 3).score == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_components_of_a_source_sum_to_its_attribution(frozen, heads, skipping, layer):
    for prompt in (frozen, heads, skipping):
        one = direct_feature_attribution(prompt, layer, 6)[0]
        for source in (0, 3, 6):
            given = source_attribution(prompt, layer, 6, one.latent, source)
            torch.testing.assert_close(
                given.by_node_head.sum(0), one.by_source_head[source], **CLOSE
            )


def test_without_the_norms_bias_they_do_not_add_up(heads):
    one = direct_feature_attribution(heads, 2, 6)[0]
    given = source_attribution(heads, 2, 6, one.latent, 6)
    for name in ("ln1 2", "b_V 2"):
        without = torch.tensor([node.name != name for node in given.nodes])
        missing = given.by_node[without].sum() - one.by_source[6]
        # Llama has neither bias.
        assert (abs(float(missing)) > 1e-4) == (heads.weights.W_pos is not None)


def test_recursion_follows_attention_latents_and_keeps_their_weights(heads):
    one = direct_feature_attribution(heads, 2, 6)[0]
    steps = recursive_attribution(
        heads, 2, 6, one.latent, RecursionOptions(n_sources=8, threshold=0.0, depth=2)
    )
    first = [step for step in steps if step.depth == 0]
    total = sum(step.weight for step in first) + one.constant
    assert total == pytest.approx(one.value, abs=1e-10)
    followed = {step.target for step in steps if step.depth == 1}
    assert followed == {
        s.source for s in first if s.source.kind == "latent" and s.source.name in HEADS
    }
    for target in list(followed)[:3]:
        assert target.position is not None
        inputs = [step.weight for step in steps if step.target == target]
        (direct,) = direct_feature_attribution(heads, target.layer, target.position, target.latent)
        assert sum(inputs) + direct.constant == pytest.approx(target.value, abs=1e-10)


def test_small_contributions_and_deep_latents_are_left_out(heads):
    one = direct_feature_attribution(heads, 2, 6)[0]
    largest = max(
        float(source_attribution(heads, 2, 6, one.latent, source).by_node.abs().max())
        for source in one.by_source.abs().topk(2).indices.tolist()
    )
    share = largest / abs(one.value) / 2
    steps = recursive_attribution(
        heads, 2, 6, one.latent, RecursionOptions(n_sources=2, threshold=share, depth=1)
    )
    assert {step.depth for step in steps} == {0}
    assert all(abs(step.weight) >= largest / 2 for step in steps)
    assert len({step.source.position for step in steps}) <= 2
