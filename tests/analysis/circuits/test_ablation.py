"""Circuits judged in the live model."""

from dataclasses import replace

import pytest
import torch
from analysis.circuits.cases import frozen_of, hosts, prompt_of

from saelab.analysis.circuits.ablation import (
    Faithfulness,
    everywhere,
    faithfulness,
    judged_each,
    mean_codes,
    members_at,
    metric_with,
    metrics_with,
    noise,
)
from saelab.analysis.circuits.edits import ablation_edits
from saelab.analysis.circuits.live import live_metric
from saelab.analysis.circuits.targets import latent_target
from saelab.config import UsageError


@pytest.fixture(scope="module")
def saes(gpt64):
    return hosts(gpt64, transcoder=2)


@pytest.fixture(scope="module")
def prompt(gpt64):
    return frozen_of(gpt64, transcoder=2)


@pytest.fixture(scope="module")
def tokens(gpt64):
    return prompt_of(gpt64)[None]


def sizes(saes):
    return {d.name: d.sae.d_sae for d in saes}


def metric(logits):
    return logits[:, -1, 3].mean() - logits[:, -1, 5].mean()


def all_of(prompt, value=True):
    return torch.full((len(prompt.values),), value)


def test_everything_is_faithful_and_nothing_is_not(gpt64, saes, prompt, tokens):
    # P7.4
    everything = {d.name: torch.ones(1, d.sae.d_sae, dtype=torch.bool) for d in saes}
    found = faithfulness(gpt64, saes, tokens, everything, metric)
    assert found.circuit == found.whole
    assert found.faithfulness == 1
    assert found.completeness == 0
    nothing = faithfulness(gpt64, saes, tokens, {}, metric)
    assert nothing.faithfulness == 0
    assert nothing.completeness == 1
    assert nothing.n_members == 0
    assert abs(found.whole - found.empty) > 1e-3


def test_keeping_every_latent_keeps_the_logits_bits(gpt64, saes, tokens):
    everything = {d.name: torch.ones(1, d.sae.d_sae, dtype=torch.bool) for d in saes}
    edited = gpt64.logits(tokens, ablation_edits(saes, tokens, everything))
    assert torch.equal(edited, gpt64.logits(tokens))


@pytest.mark.parametrize("of_latent", [False, True])
def test_circuits_side_by_side_are_judged_as_alone(gpt64, saes, prompt, tokens, of_latent):
    asked = latent_target(prompt, 1, int(prompt.actives[1].codes.latent[-1]), len(tokens[0]) - 1)
    of = live_metric(prompt, saes, asked) if of_latent else metric
    chosen = torch.rand(40, len(prompt.values), generator=torch.Generator().manual_seed(0)) < 0.5
    ways = [members_at(prompt, some, sizes(saes)) for some in chosen]
    alone = [metric_with(gpt64, saes, tokens, way, of) for way in ways]
    assert list(metrics_with(gpt64, saes, prompt, chosen, of)) == pytest.approx(alone, abs=1e-5)
    assert len(set(alone)) > 10
    for way, judged in zip(ways[:3], judged_each(gpt64, saes, prompt, chosen, of)[:3], strict=True):
        one = faithfulness(gpt64, saes, tokens, way, of)
        assert vars(judged) == pytest.approx(vars(one), abs=1e-5)


def test_an_ablated_latent_is_gone_from_its_site(gpt64, saes, prompt, tokens):
    # One latent at one position, by hand.
    number, entry = 1, 9
    active = prompt.actives[number]
    latent, position = int(active.codes.latent[entry]), int(active.codes.row[entry])
    host = next(d for d in saes if d.name == active.name)
    keep = {d.name: torch.ones(8, d.sae.d_sae, dtype=torch.bool) for d in saes}
    keep[active.name][position, latent] = False
    edits = ablation_edits(saes, tokens, keep)
    seen = gpt64.run(tokens, edits=edits, hooks=[host.reads]).activations[host.reads][0]
    x = gpt64.capture(tokens, [host.reads])[host.reads][0]
    expected = x.clone()
    expected[position] -= active.codes.values[entry] * active.decoder[entry]
    torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-5)


def test_members_at_their_positions_or_everywhere(prompt, saes):
    chosen = all_of(prompt, value=False)
    chosen[[0, len(chosen) - 1]] = True
    members = members_at(prompt, chosen, sizes(saes))
    assert sum(int(mask.sum()) for mask in members.values()) == 2
    codes = prompt.actives[0].codes
    assert members[prompt.actives[0].name][codes.row[0], codes.latent[0]]
    spread = everywhere(members)
    assert spread[prompt.actives[0].name].shape == (1, 24)
    assert spread[prompt.actives[0].name][0, codes.latent[0]]


def test_a_transcoders_latents_can_be_ablated(gpt64, saes, prompt, tokens):
    keep = {d.name: torch.ones(1, d.sae.d_sae, dtype=torch.bool) for d in saes}
    keep["transcoder"][:] = False
    out = "blocks.2.hook_mlp_out"
    seen = gpt64.run(tokens, edits=ablation_edits(saes, tokens, keep), hooks=[out]).activations[
        out
    ][0]
    active = prompt.actives[-1]
    torch.testing.assert_close(seen, active.error + active.b_dec, rtol=1e-4, atol=1e-4)


def test_ablated_latents_may_go_to_their_means(gpt64, saes, tokens):
    means = mean_codes(gpt64, saes, tokens)
    first = saes[0]
    keep = {d.name: torch.ones(1, d.sae.d_sae, dtype=torch.bool) for d in saes}
    keep[first.name][:] = False
    edits = ablation_edits(saes, tokens, keep, means)
    seen = gpt64.run(tokens, edits=edits, hooks=[first.reads]).activations[first.reads][0]
    x = gpt64.capture(tokens, [first.reads])[first.reads][0]
    codes = first.sae.encode(x.to(first.sae.W_dec.dtype)).dense()
    change = (codes.mean(0) - codes) @ first.sae.W_dec
    torch.testing.assert_close(seen, x + change, rtol=1e-4, atol=1e-4)


def test_a_circuit_is_between_nothing_and_everything_in_size(gpt64, saes, prompt, tokens):
    chosen = all_of(prompt, value=False)
    chosen[::2] = True
    members = members_at(prompt, chosen, sizes(saes))
    found = faithfulness(gpt64, saes, tokens, members, metric)
    assert found.n_members == int(chosen.sum())
    assert found.values()["faithfulness"] == found.faithfulness
    assert found.circuit != found.complement


def test_ratios_that_say_nothing_or_little_say_so():
    judged = Faithfulness(whole=5.0, circuit=4.0, complement=1.0, empty=1.0, n_members=3)
    assert judged.caveat == ""
    assert judged.values()["faithfulness"] == 0.75
    none = replace(judged, n_members=0, circuit=1.0, complement=5.0)
    assert "nothing was judged" in none.caveat
    assert none.values()["faithfulness"] is None
    same = replace(judged, empty=5.0)
    assert "there are no ratios" in same.caveat
    assert same.values()["completeness"] is None
    for little in (replace(judged, empty=4.8), replace(judged, whole=-0.96, empty=-1.0)):
        assert "together change the target by" in little.caveat
        assert little.values()["faithfulness"] is None


def test_random_circuits_beyond_none_and_all_make_ratios_noise():
    judged = Faithfulness(whole=2.35, circuit=3.16, complement=0.86, empty=2.73, n_members=9)
    assert judged.caveat == noise(()) == ""
    # They leave 2.35 to 2.73 by 1.35, 0 and 2.27, on average 1.21.
    draws = [replace(judged, circuit=value) for value in (1.0, 2.5, 5.0)]
    assert "the target by -0.38 only" in noise(draws)
    assert "leave that range by 1.21 on average" in noise(draws)
    assert judged.values(noise(draws))["faithfulness"] is None
    # Within the range, or beyond it by less than its width, they are a yardstick.
    assert noise([replace(judged, circuit=value) for value in (2.4, 2.7, 3.0)]) == ""
    assert noise([replace(judged, whole=2.73)]) == ""


def test_latents_of_an_sae_that_is_not_there_are_refused(gpt64, saes, tokens):
    members = {"other": torch.ones(1, 24, dtype=torch.bool)}
    with pytest.raises(UsageError, match="latents of other, which is not among"):
        faithfulness(gpt64, saes, tokens, members, metric)
