"""An SAE is applied where it was trained; elsewhere its error carries the activation, exactly."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from analysis.circuits.cases import hosts, one_hot, prompt_of, random_transcoder
from analysis.circuits.replay import Replay
from conftest import SINK

from saelab.analysis.circuits.ablation import faithfulness, mean_codes
from saelab.analysis.circuits.backward_walk import stop, walk_back
from saelab.analysis.circuits.edits import ablation_edits
from saelab.analysis.circuits.explain import (
    CircuitOptions,
    explain,
    explain_runs,
    largest_inputs,
    left_out_inputs,
)
from saelab.analysis.circuits.frozen import freeze
from saelab.analysis.circuits.graph import GraphOptions, attribution_graph
from saelab.analysis.circuits.intervene import Change, intervene
from saelab.analysis.circuits.patching import latent_effects
from saelab.analysis.circuits.readings import logit_reading
from saelab.analysis.circuits.targets import logit_target, read_at
from saelab.config import UsageError
from saelab.host.host import Host
from saelab.training.domain import Domain

BOS, CLOSE = 0, {"rtol": 0, "atol": 1e-10}
EXACT = GraphOptions(precision="float64")


def limited(lm, saes: list[Host]) -> list[Host]:
    """SAEs whose training left out <bos>, and every row above the prompt's middle norm."""
    tokens, found = prompt_of(lm), []
    for sae in saes:
        norms = lm.capture(tokens[None], [sae.reads])[sae.reads][0, 1:].norm(dim=-1)
        # Between two rows, so that rounding does not matter.
        limit = float(norms.sort().values[3:5].mean())
        found.append(replace(sae, domain=Domain((BOS,), limit)))
    return found


@pytest.fixture(scope="module")
def limits(lm64):
    skip = random_transcoder(lm64, 2, skip=True)
    return limited(lm64, [*hosts(lm64), skip])


@pytest.fixture(scope="module")
def prompt(lm64, limits):
    return freeze(lm64, limits, prompt_of(lm64))


@pytest.fixture(scope="module")
def texts(lm64):
    return tuple(lm64.tokenizer.token(i) for i in prompt_of(lm64).tolist())


def metric(logits):
    return logits[0, -1, 3] - logits[0, -1, 5]


def test_elsewhere_no_latent_fires_and_the_error_is_the_activation(prompt, limits):
    for active, sae in zip(
        prompt.actives, sorted(limits, key=lambda d: d.place.depth), strict=True
    ):
        x = read_at(prompt, active.place)
        expected = [
            token != BOS and float(row.norm()) <= sae.domain.max_norm
            for token, row in zip(prompt.record.tokens[0].tolist(), x, strict=True)
        ]
        assert active.applies.tolist() == expected
        assert set(expected) == {True, False}
        out = x if active.place.kind != "mlp" else prompt.record.layers[2].mlp_out[0]
        for position, applied in enumerate(expected):
            fires = bool((active.codes.row == position).any())
            assert fires == applied
            if not applied:
                assert torch.equal(active.error[position], out[position])
        torch.testing.assert_close(active.written(), out, **CLOSE)


def test_where_it_applies_the_codes_are_as_without_limits(lm64, prompt, limits):
    free = freeze(lm64, [replace(d, domain=Domain()) for d in limits], prompt_of(lm64))
    for active, every in zip(prompt.actives, free.actives, strict=True):
        here = active.applies[every.codes.row]
        assert torch.equal(active.codes.latent, every.codes.latent[here])
        assert torch.equal(active.codes.row, every.codes.row[here])
        torch.testing.assert_close(active.codes.values, every.codes.values[here], **CLOSE)
        assert torch.equal(active.error[active.applies], every.error[active.applies])


def test_row_sums_are_exact_and_leaves_are_what_plain_loops_find(lm64, prompt, texts):
    target = logit_target(prompt, 3, 5)
    graph = attribution_graph(prompt, target, texts, EXACT)
    inner = [n for n, node in enumerate(graph.nodes) if node.kind in ("latent", "target")]
    assert np.abs(graph.row_sums() - graph.values)[inner].max() < 1e-10
    # Second method: the logits recomputed in plain loops, one latent moved.
    coefficients = one_hot(lm64, 3)
    slopes = walk_back(
        prompt, logit_reading(prompt, prompt.n_pos - 1, coefficients), stop
    ).gradient[0]
    for latent in range(0, len(prompt.values), 7):
        moved = Replay(prompt, {latent: 1.0}).logits() - Replay(prompt).logits()
        assert float(moved[-1, 3]) == pytest.approx(float(slopes[latent]), abs=1e-10)


def test_the_graph_says_where_its_saes_are_not_applied(prompt, texts):
    graph = attribution_graph(prompt, logit_target(prompt, 3, 5), texts, EXACT)
    for active in prompt.actives:
        left_out = graph.facts["saes"][active.name]["left_out"]
        assert left_out == (~active.applies).nonzero()[:, 0].tolist()
    outside = [node for node in graph.nodes if graph.left_out(node)]
    assert {node.position for node in outside} >= {0}
    assert not any(node.kind == "latent" for node in outside)
    errors = {(n.name, n.position) for n in graph.nodes if n.kind == "error"}
    saes = graph.facts["saes"]
    assert {(n.name, n.position) for n in outside if n.kind == "error"} == {
        (name, place) for name, place in errors if place in saes[name]["left_out"]
    }


def test_ablation_leaves_those_positions_their_bits(lm64, limits):
    tokens = prompt_of(lm64)[None]
    for sae in limits:
        nothing = {sae.name: torch.zeros(1, sae.sae.d_sae, dtype=torch.bool)}
        means = mean_codes(lm64, [sae], tokens)
        plain = lm64.capture(tokens, [sae.reads, sae.writes])
        applies = sae.domain.covers(tokens, plain[sae.reads])
        for edits in (
            ablation_edits([sae], tokens, nothing),
            ablation_edits([sae], tokens, nothing, means),
        ):
            site = sae.writes
            done = lm64.run(tokens, edits=edits, hooks=[site]).activations[site]
            changed = (done != plain[site]).any(-1)
            assert not bool(changed[~applies].any())
            assert bool(changed[applies].all())


def test_means_are_over_the_tokens_where_it_applies(lm64, limits):
    tokens, sae = prompt_of(lm64)[None], limits[0]
    x = lm64.capture(tokens, [sae.reads])[sae.reads]
    rows = x[sae.domain.covers(tokens, x)].to(sae.sae.W_dec.dtype)
    expected = sae.sae.encode(rows).dense().mean(0)
    torch.testing.assert_close(mean_codes(lm64, [sae], tokens)[sae.name], expected)


def test_effects_of_latents_are_none_elsewhere_and_sum_to_the_whole(lm64, limits):
    tokens, sae = prompt_of(lm64), limits[-1]
    plain = lm64.capture(tokens[None], [sae.reads])[sae.reads][0]
    applies = sae.domain.covers(tokens, plain)
    found = latent_effects(lm64, sae, tokens, metric)
    assert not bool(found.latents[~applies].any())
    nothing = {sae.name: torch.zeros(1, sae.sae.d_sae, dtype=torch.bool)}
    without = metric(lm64.logits(tokens[None], ablation_edits([sae], tokens[None], nothing)))
    assert found.total == pytest.approx(
        float(without - metric(lm64.logits(tokens[None]))), abs=1e-6
    )


def test_latents_that_are_not_there_can_be_neither_explained_nor_changed(lm64, prompt, limits):
    with pytest.raises(UsageError, match="is not applied at position 0: its training left out"):
        prompt.latent_index(0, 3, 0)
    tokens, name = prompt_of(lm64), limits[0].name
    change = Change([(name, latent, 0) for latent in range(24)])
    found = intervene(lm64, limits, tokens, change, watched=(name, 3, 0))
    assert torch.equal(found.before, found.after)
    assert found.latent == (0, 0)


def test_an_sae_that_applies_nowhere_leaves_the_model_as_it_is(lm64, texts):
    saes = [replace(d, domain=Domain((), 1e-6)) for d in hosts(lm64, transcoder=2)]
    tokens = prompt_of(lm64)
    frozen = freeze(lm64, saes, tokens)
    assert not len(frozen.values)
    found = faithfulness(lm64, saes, tokens[None], {}, metric)
    assert found.whole == found.empty
    graph = attribution_graph(frozen, logit_target(frozen, 3, 5), texts, EXACT)
    assert graph.row_sums()[-1] == pytest.approx(graph.nodes[-1].value, abs=1e-10)


def test_no_top_node_stands_where_every_sae_was_left_out(lm64, limits):
    words = "the big cat sat on a red"
    found = explain(lm64, limits, words, CircuitOptions(target="dog", n_members=5))
    top = largest_inputs(found.graph, 15)
    assert len(top) == 15
    assert not any(label.endswith("@0") for label, _ in top)


def test_a_runs_sae_is_applied_where_it_was_trained(sink_run, sink_lm):
    found = explain_runs(
        sink_lm, [sink_run], f"the big cat sat {SINK} a red", CircuitOptions(max_nodes=30)
    )
    sae = found.graph.facts["saes"][sink_run.name]
    assert sae["left_out"] == [0, 5]
    places = {place: names for place, names, _ in left_out_inputs(found.graph)}
    assert places == {0: [sink_run.name], 5: [sink_run.name]}
    assert not any(n.kind == "latent" and n.position in (0, 5) for n in found.graph.nodes)
    assert abs(found.graph.row_sums()[-1] - found.graph.nodes[-1].value) < 1e-5
