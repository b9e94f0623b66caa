"""Direct feature attribution adds up, by heads and by sources, with grouped heads too."""

from typing import Any

import pytest
import torch
from analysis.circuits.cases import frozen_of, hosts, prompt_of

from saelab.analysis.attention.dfa import dfa, direct_feature_attribution
from saelab.analysis.circuits.frozen import freeze
from saelab.config import UsageError
from saelab.host.host import Host
from saelab.sae.topk import TopKConfig

LAYERS = {0: "topk", 1: "abs-topk", 2: "jumprelu"}
CLOSE = {"rtol": 0, "atol": 1e-11}


@pytest.mark.parametrize("layer", LAYERS, ids=LAYERS.get)
@pytest.mark.parametrize("position", [0, 3, 7])
def test_contributions_and_constant_sum_to_the_activation(frozen, layer, position):
    found = direct_feature_attribution(frozen, layer, position)
    assert found
    for one in found:
        total = float(one.by_source_head.sum()) + one.constant
        assert total == pytest.approx(one.value, abs=1e-11)


def test_the_sum_is_the_pre_activation_without_its_biases(lm64, frozen):
    (host,) = hosts(lm64, {"blocks.0.attn.hook_z": "topk"})
    sae: Any = host.sae
    z = frozen.record.layers[0].z_cat[0, 5]
    for one in direct_feature_attribution(frozen, 0, 5):
        read = z @ sae.W_enc[:, one.latent].double()
        assert float(one.by_source_head.sum()) == pytest.approx(float(read), abs=1e-11)
        bias = sae.b_enc[one.latent] - sae.b_dec @ sae.W_enc[:, one.latent]
        assert one.constant == pytest.approx(float(bias), abs=1e-6)


def test_a_pursued_latent_adds_up_too(lm64):
    frozen = frozen_of(lm64, {"blocks.1.attn.hook_z": "matching-pursuit"})
    for one in direct_feature_attribution(frozen, 1, 6):
        assert float(one.by_source_head.sum()) + one.constant == pytest.approx(one.value, abs=1e-11)


def test_without_the_constant_it_does_not_add_up(frozen):
    one = direct_feature_attribution(frozen, 1, 4)[0]
    assert abs(float(one.by_source_head.sum()) - one.value) > 1e-3


def test_by_head_is_the_heads_output_read_by_the_encoder(frozen):
    one = direct_feature_attribution(frozen, 1, 6)[0]
    active = frozen.actives[2]
    entry = frozen.latent_index(2, one.latent, 6) - frozen.spans[2].start
    a = active.codes.encoder[entry].view(4, -1)
    expected = (frozen.record.layers[1].z[0, 6] * a).sum(-1)
    torch.testing.assert_close(one.by_head, expected, **CLOSE)


def test_nothing_comes_from_tokens_ahead(frozen):
    for one in direct_feature_attribution(frozen, 2, 3):
        assert not one.by_source_head[4:].any()
        assert bool(one.by_source_head[:4].all())


def test_the_coordinates_may_be_renamed_together(frozen):
    generator = torch.Generator().manual_seed(0)
    pattern, v = frozen.record.layers[1].pattern[0, :, 6], frozen.record.layers[1].v[0]
    encoder = torch.randn(3, 16, generator=generator, dtype=torch.float64)
    heads, inside = torch.randperm(4, generator=generator), torch.randperm(4, generator=generator)
    moved = encoder.view(3, 4, 4)[:, heads][..., inside].flatten(1)
    plain, renamed = dfa(pattern, v, encoder), dfa(pattern[heads], v[:, heads][..., inside], moved)
    torch.testing.assert_close(renamed, plain[..., heads], **CLOSE)


def test_grouped_values_are_repeated_and_not_tiled(lm64, frozen):
    hook = "blocks.1.attn.hook_v"
    raw = lm64.capture(prompt_of(lm64)[None], [hook])[hook][0]
    v = raw.unflatten(-1, (-1, 4))
    times = 4 // v.shape[1]
    torch.testing.assert_close(
        frozen.record.layers[1].v[0], v.repeat_interleave(times, 1), rtol=1e-5, atol=1e-5
    )
    if times > 1:
        one = direct_feature_attribution(frozen, 1, 6)[0]
        entry = frozen.latent_index(2, one.latent, 6) - frozen.spans[2].start
        a = frozen.actives[2].codes.encoder[[entry]]
        wrong = dfa(frozen.record.layers[1].pattern[0, :, 6], v.repeat(1, times, 1), a)
        assert abs(float(wrong.sum()) + one.constant - one.value) > 1e-2


def test_an_identity_sae_attributes_each_coordinate_to_its_head(lm64):
    sae = TopKConfig(d_sae=16, k=16).build(16)
    with torch.no_grad():
        sae.W_dec.copy_(torch.eye(16))
        sae.W_enc.copy_(torch.eye(16))
    site = "blocks.1.attn.hook_z"
    frozen = freeze(
        lm64, [Host.at(lm64, sae.requires_grad_(requires_grad=False), site)], prompt_of(lm64)
    )
    for one in direct_feature_attribution(frozen, 1, 5):
        assert one.by_head.nonzero()[:, 0].tolist() == [one.latent // 4]
        assert one.constant == 0


def test_latents_that_do_not_fire_and_places_that_do_not_exist_are_refused(frozen):
    silent = next(
        i
        for i in range(24)
        if i not in [d.latent for d in direct_feature_attribution(frozen, 0, 2)]
    )
    with pytest.raises(
        UsageError, match=f"Latent {silent} of .* does not fire at position 2; those"
    ):
        direct_feature_attribution(frozen, 0, 2, silent)
    with pytest.raises(UsageError, match="Position 40 is not in the prompt, which has 0 to 7"):
        direct_feature_attribution(frozen, 0, 40)
    with pytest.raises(
        UsageError,
        match=r"No SAE reads blocks.9.attn.hook_z or hook_attn_out; layers with one: 0, 1, 2",
    ):
        direct_feature_attribution(frozen, 9, 2)


def test_the_figure_shows_every_source_and_head(frozen):
    one = direct_feature_attribution(frozen, 1, 6)[0]
    traces: Any = one.figure(["<b>", *"abcdefg"]).data
    bars, strip = traces
    assert len(bars.y) == 4
    assert (len(strip.z), len(strip.z[0])) == (4, 8)
    assert strip.customdata[0][0] == "&lt;b&gt;"
