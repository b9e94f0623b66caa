"""Head studies, checked on the shipped model against what ablation says of its heads."""

from typing import Any

import pytest
import torch
from analysis.steering.cases import random_sae

from saelab.analysis.attention.heads import HeadAttribution
from saelab.analysis.attention.studies import (
    HeadThemes,
    LatentFamily,
    head_themes,
    latent_families,
    polysemantic_share,
    prefix_induction,
)
from saelab.config import UsageError
from saelab.figures.attention import families_figure, themes_figure
from saelab.formats.json_file import read_config
from saelab.host.host import Host
from saelab.lm.internals import model_weights
from saelab.lm.tiny import MODEL_DIR
from saelab.lm.tiny.vocabulary import ids
from saelab.sae.topk import TopKConfig
from tools.tiny.heads import HeadReport


@pytest.fixture(scope="module")
def roles():
    return read_config(HeadReport, MODEL_DIR / "heads.json").roles


def test_themes_are_counted_among_the_latents_a_head_owns():
    shares = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.1, 0.9], [0.2, 0.8]]).double()
    tags = ["names", "names", None, "verbs", None]
    first, second = head_themes(HeadAttribution(shares), tags, n=3)
    assert first == HeadThemes(0, (0, 1, 2), (("names", 2), ("latent 2", 1)), 2 / 3)
    assert second.latents == (3, 4, 2)
    assert second.share == 1 / 3
    assert polysemantic_share([first, second]) == 1.0
    assert polysemantic_share([first, second], one_theme=0.5) == 0.5


def test_figures_have_a_bar_a_head_and_a_part_a_family():
    shares = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).double()
    themes = head_themes(HeadAttribution(shares), ["a<b", "c"], n=1)
    bars: Any = themes_figure({"layer 0": themes}).data
    assert list(bars[0].x) == [1.0, 1.0]
    assert bars[0].text[0] == "a&lt;b"
    families = [LatentFamily(0, 1, 0.2, 0.6, 0.2), LatentFamily(1, 1, 0.6, 0.2, 0.2)]
    parts: Any = families_figure({"one": families, "two": families[:1]}).data
    assert {part.name: list(part.x) for part in parts} == {
        "local": [1, 0],
        "induction": [1, 1],
        "long-range": [0, 0],
        "mixed": [0, 0],
    }


def test_tags_must_be_one_a_latent():
    with pytest.raises(UsageError, match="Got 2 tags for 3 latents"):
        head_themes(HeadAttribution(torch.ones(3, 2).double()), ["a", "b"])


def test_induction_heads_look_behind_a_copied_prefix_and_no_others(tiny_lm, roles):
    found = prefix_induction(
        tiny_lm, torch.tensor(sorted(ids("plural_noun", "singular_noun"))), (1, 3), n=8
    )
    heads = set(roles["induction"])
    for layer in range(4):
        for head in range(4):
            one, three = found.scores[:, layer, head].tolist()
            if (layer, head) in heads:
                assert three > 0.7
                assert one > 0.4
            else:
                assert max(one, three) < 0.15
    figure: Any = found.figure()
    assert {trace.name for trace in figure.data} == {f"{a}.{b}" for a, b in heads}


def test_a_pool_that_is_too_small_is_refused(tiny_lm):
    with pytest.raises(UsageError, match="sequences of 64 need 64 different tokens"):
        prefix_induction(tiny_lm, torch.arange(10, 30))


def coordinates(lm, site: str) -> Host:
    """An SAE whose latents are a head's coordinates, of both signs."""
    sae = TopKConfig(d_sae=256, k=256).build(128)
    with torch.no_grad():
        both = torch.cat([torch.eye(128), -torch.eye(128)])
        sae.W_dec.copy_(both)
        sae.W_enc.copy_(both.T)
    return Host.at(lm, sae.requires_grad_(requires_grad=False), site)


@pytest.fixture(scope="module")
def spans():
    """Sequences of 23 nouns, each said twice."""
    pool = torch.tensor(sorted(ids("plural_noun", "singular_noun")))
    generator = torch.Generator().manual_seed(0)
    once = torch.stack(
        [pool[torch.randperm(len(pool), generator=generator)[:23]] for _ in range(4)]
    )
    return torch.cat([torch.zeros(4, 1, dtype=torch.long), once, once], dim=1)


def by_head(families) -> list[LatentFamily]:
    """Mean shares of each head's coordinates, a family each."""
    rows = []
    for head in range(4):
        mine = [f for f in families if (f.latent % 128) // 32 == head]
        mean = [
            sum(getattr(f, k) for f in mine) / len(mine) for k in ("local", "induction", "distant")
        ]
        rows.append(LatentFamily(head, sum(f.n_fired for f in mine), *mean))
    return rows


def test_families_of_heads_are_what_the_heads_do(tiny_lm, roles, spans):
    layer0 = by_head(latent_families(tiny_lm, coordinates(tiny_lm, "blocks.0.attn.hook_z"), spans))
    layer2 = by_head(latent_families(tiny_lm, coordinates(tiny_lm, "blocks.2.attn.hook_z"), spans))
    (previous,) = [head for layer, head in roles["previous-token"] if layer == 0]
    assert max(layer0, key=lambda f: f.local).latent == previous
    assert layer0[previous].family == "local"
    induction = {head for _, head in roles["induction"]}
    others = [layer2[head] for head in range(4) if head not in induction] + layer0
    least = min(layer2[head].induction for head in induction)
    assert least > 2 * max(f.induction for f in others)


def test_shares_sum_to_one_and_the_busiest_latents_come_first(tiny_lm, spans):
    sae = Host.at(tiny_lm, random_sae("topk", d_in=128), "blocks.1.attn.hook_z")
    found = latent_families(tiny_lm, sae, spans[:2])
    assert sum(f.n_fired for f in found) == 2 * 47 * 4
    counts = [f.n_fired for f in found]
    assert counts == sorted(counts, reverse=True)
    for f in found:
        # The first token, read by itself alone, has no source.
        assert f.local + f.induction + f.distant <= 1 + 1e-9
        assert f.local + f.induction + f.distant > 1 - 2.001 / f.n_fired


@torch.no_grad()
def test_latents_of_attentions_output_read_what_they_read_of_the_heads(tiny_lm, spans):
    weights = model_weights(tiny_lm, torch.float32).layers[1]
    W_O = weights.W_O.flatten(0, 1)
    outer, inner = (
        TopKConfig(d_sae=24, k=4).build(128, torch.Generator().manual_seed(0)) for _ in range(2)
    )
    outer.b_dec.normal_(generator=torch.Generator().manual_seed(1))
    inner.W_dec.copy_(outer.W_dec)
    inner.W_enc.copy_(W_O @ outer.W_enc)
    inner.b_enc.add_(inner.b_dec @ inner.W_enc + (weights.b_O - outer.b_dec) @ outer.W_enc)
    found = [
        latent_families(tiny_lm, Host.at(tiny_lm, sae, f"blocks.1.{site}"), spans[:2])
        for sae, site in ((outer, "hook_attn_out"), (inner, "attn.hook_z"))
    ]
    assert [(f.latent, f.n_fired, f.family) for f in found[0]] == [
        (f.latent, f.n_fired, f.family) for f in found[1]
    ]
    shares = [[(f.local, f.induction) for f in families] for families in found]
    torch.testing.assert_close(*map(torch.tensor, shares))


def test_families_need_an_attention_sae(tiny_lm, spans):
    sae = Host.at(tiny_lm, random_sae("topk", d_in=128), "blocks.1.hook_resid_pre")
    with pytest.raises(UsageError, match=r"families need attn.hook_z or hook_attn_out"):
        latent_families(tiny_lm, sae, spans)


def test_a_family_needs_more_than_half():
    assert LatentFamily(0, 1, 0.2, 0.6, 0.2).family == "induction"
    assert LatentFamily(0, 1, 0.6, 0.2, 0.2).family == "local"
    assert LatentFamily(0, 1, 0.2, 0.2, 0.6).family == "long-range"
    assert LatentFamily(0, 1, 0.4, 0.3, 0.3).family == "mixed"
