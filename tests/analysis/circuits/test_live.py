"""The latents that support a target in the live model, and circuits of several sizes."""

from dataclasses import replace

import pytest
import torch
from analysis.circuits.cases import PROMPT, frozen_of

from saelab.analysis.circuits.ablation import Faithfulness, faithfulness, members_at
from saelab.analysis.circuits.edits import ablation_edits
from saelab.analysis.circuits.explain import CircuitOptions, explain
from saelab.analysis.circuits.frozen import freeze
from saelab.analysis.circuits.hierarchical import hierarchical_attribution
from saelab.analysis.circuits.intervene import Change, intervene
from saelab.analysis.circuits.live import (
    by_chance,
    faithfulness_curve,
    gradient_circuit,
    interventions,
    live_metric,
    strongest,
    support,
)
from saelab.analysis.circuits.patching import latent_effects
from saelab.analysis.circuits.targets import latent_target, logit_target


def metric(logits):
    return logits[0, -1, 3] - logits[0, -1, 5]


@pytest.fixture(scope="module")
def given(gpt64, saes, tokens):
    return support(gpt64, saes, tokens, metric)


def test_what_a_site_gives_is_what_taking_all_its_latents_away_loses(gpt64, saes, tokens, given):
    # P7.1: the metric loses the sum, to the accuracy of ten steps.
    for sae in saes:
        keep = {d.name: torch.full((1, d.sae.d_sae), d is not sae) for d in saes}
        left = metric(gpt64.logits(tokens[None], ablation_edits(saes, tokens[None], keep)))
        lost = float(metric(gpt64.logits(tokens[None])) - left)
        assert float(given[sae.name].sum()) == pytest.approx(lost, abs=0.02 * max(1.0, abs(lost)))
        effects = latent_effects(gpt64, sae, tokens, metric).latents
        torch.testing.assert_close(given[sae.name], -effects)


def test_single_latents_are_taken_away_as_by_hand_and_predicted_by_the_frozen_model(
    gpt64, saes, tokens
):
    frozen = freeze(gpt64, saes, tokens)
    target = logit_target(frozen, 3, 5)
    given = hierarchical_attribution(frozen, target).latents
    found = interventions(gpt64, saes, frozen, target, 4)
    assert [-one.predicted for one in found] == [
        float(given[i]) for i in given.abs().topk(4).indices
    ]
    for one in found:
        place = (one.name, one.latent, one.position)
        by_hand = intervene(gpt64, saes, tokens, Change([place]))
        change = (by_hand.after - by_hand.before)[[3, 5]]
        assert one.live == pytest.approx(float(change[0] - change[1]), abs=1e-9)
        assert one.live != pytest.approx(one.predicted, abs=1e-6)
    assert interventions(gpt64, saes, frozen, target, 0) == ()


def test_the_strongest_are_the_largest_and_none_works_against_it(given):
    chosen = strongest(given, 12)
    inside = torch.cat([given[name][mask] for name, mask in chosen.items()])
    outside = torch.cat([given[name][~mask] for name, mask in chosen.items()])
    assert len(inside) == 12
    assert float(inside.min()) >= float(outside.max())
    every = strongest(given, 10**6)
    assert all(torch.equal(every[name], values > 0) for name, values in given.items())
    none = strongest({name: -values.abs() for name, values in given.items()}, 12)
    assert not any(bool(mask.any()) for mask in none.values())


def test_a_curve_ends_with_all_that_support_the_metric(gpt64, saes, tokens, given):
    total = sum(int((values > 0).sum()) for values in given.values())
    sizes = (5, total, total + 1)
    curve = faithfulness_curve(gpt64, saes, tokens, metric, given, sizes)
    assert [judged.n_members for judged in curve] == [5, total]
    assert curve[0].whole == curve[1].whole
    assert curve[0].circuit != curve[1].circuit


def test_without_support_there_is_no_circuit(gpt64):
    # No SAE, no latent, nothing to judge.
    frozen = frozen_of(gpt64, {})
    assert gradient_circuit(gpt64, [], frozen, logit_target(frozen, 3), 40) is None


def test_circuits_by_chance_are_as_large_and_of_latents_that_fire(gpt64, saes, tokens):
    frozen = freeze(gpt64, saes, tokens)
    sizes = {d.name: d.sae.d_sae for d in saes}
    chosen = torch.zeros(len(frozen.values), dtype=torch.bool)
    chosen[:7] = True
    members = members_at(frozen, chosen, sizes)
    judged = faithfulness(gpt64, saes, tokens[None], members, metric)
    draws = by_chance(gpt64, saes, frozen, metric, judged)
    assert draws == by_chance(gpt64, saes, frozen, metric, judged)
    assert [d.n_members for d in draws] == [7] * 5
    assert len({d.circuit for d in draws}) == 5
    # As many as fire are all of them, and none are not judged.
    every = members_at(frozen, torch.ones_like(chosen), sizes)
    whole = faithfulness(gpt64, saes, tokens[None], every, metric)
    for draw in by_chance(gpt64, saes, frozen, metric, whole, n_draws=2):
        assert (draw.circuit, draw.complement) == (whole.circuit, whole.complement)
    assert by_chance(gpt64, saes, frozen, metric, replace(judged, n_members=0)) == ()


def test_before_a_latent_only_earlier_latents_are_drawn(gpt64, saes, tokens):
    frozen = freeze(gpt64, saes, tokens)
    target = latent_target(frozen, 1, int(frozen.actives[1].codes.latent[-1]), 7)
    own = live_metric(frozen, saes, target)
    n = len(frozen.actives[0].codes)
    some = Faithfulness(whole=1.0, circuit=0.0, complement=0.0, empty=0.0, n_members=n + 5)
    assert [d.n_members for d in by_chance(gpt64, saes, frozen, own, some)] == [n] * 5


def test_the_curve_is_written_where_it_was_asked_for(gpt64, saes):
    options = {"target": "dog", "max_nodes": 20, "n_members": 10}
    found = explain(gpt64, saes, PROMPT, CircuitOptions(**options, curve=True))
    assert found.by_gradients is not None
    curve = found.graph.facts["curve"]
    assert [judged["n_members"] for judged in curve[:3]] == [5, 10, 20]
    assert curve[1] == found.by_gradients.faithfulness.values()
    assert "curve" not in explain(gpt64, saes, PROMPT, CircuitOptions(**options)).graph.facts
