"""Attribution graphs: exact rows, exact totals, whatever was left out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from analysis.circuits.cases import hosts, prompt_of

from saelab.analysis.circuits import active, rows
from saelab.analysis.circuits.frozen import Frozen, freeze
from saelab.analysis.circuits.graph import (
    AttributionGraph,
    GraphOptions,
    attribution_graph,
    direct_inputs,
)
from saelab.analysis.circuits.hierarchical import hierarchical_attribution
from saelab.analysis.circuits.targets import latent_target, logit_target, next_token_probabilities
from saelab.config import UsageError

TOKENS = ("<bos>", "the", "big", "cat", "sat", "on", "a", "red")
LEAVES = ("embedding", "position", "error", "mlp", "bias", "rest")


def graph_of(frozen: Frozen, target=None, **options) -> AttributionGraph:
    target = target or logit_target(frozen, 3, 5)
    exact = GraphOptions.model_validate({"precision": "float64", "stop_share": 1} | options)
    return attribution_graph(frozen, target, TOKENS, exact)


@pytest.fixture(scope="module", params=[4000, 20], ids=["whole", "budget"])
def graph(request, frozen):
    return graph_of(frozen, max_nodes=request.param, batch_size=7)


def kinds(graph):
    return np.array([node.kind for node in graph.nodes])


def test_what_flows_into_a_latent_and_the_target_is_their_value(graph):
    # P7.7, with what a budget left out among the inputs.
    fed = np.isin(kinds(graph), ("latent", "target"))
    np.testing.assert_allclose(graph.row_sums()[fed], graph.values[fed], atol=1e-9)
    assert not graph.row_sums()[~fed].any()


def test_the_leaves_attributions_sum_to_the_target(graph):
    # P3.1 on the graph's own edges.
    given = graph.attributions()
    leaves = np.isin(kinds(graph), LEAVES)
    assert given[leaves].sum() == pytest.approx(graph.values[-1], abs=1e-8)
    without = np.isin(kinds(graph), LEAVES[:3])
    assert abs(given[without].sum() - graph.values[-1]) > 1e-3


def test_attributions_of_the_whole_graph_are_those_of_all_paths(frozen):
    target = logit_target(frozen, 3, 5)
    graph = graph_of(frozen, target, max_nodes=4000)
    paths = hierarchical_attribution(frozen, target).latents
    mine = dict(zip([node.label() for node in graph.nodes], graph.attributions(), strict=True))
    for index in range(0, len(frozen.values), 5):
        number = int(frozen.owner[index])
        codes, entry = frozen.actives[number].codes, index - frozen.spans[number].start
        label = f"{frozen.actives[number].name} {codes.latent[entry]} @{codes.row[entry]}"
        # Latents that the target cannot see are not in the graph.
        assert mine.get(label, 0.0) == pytest.approx(float(paths[index]), abs=1e-8)


def test_a_target_of_zero_has_attributions_too(graph):
    plain = graph.attributions()
    last = replace(graph.nodes[-1], value=0.0)
    moved = replace(graph, nodes=(*graph.nodes[:-1], last)).attributions()
    np.testing.assert_array_equal(moved[:-1], plain[:-1])
    assert moved[-1] == 0


def test_edges_go_up_and_a_budget_is_kept_and_counted(frozen):
    graph = graph_of(frozen, max_nodes=20, batch_size=7)
    assert (graph.source < graph.target).all()
    counts = graph.counts
    assert counts["latents"] == 20 == (kinds(graph) == "latent").sum()
    assert (
        counts["latents"] + counts["latents_left_out"]
        == counts["active_latents"]
        == len(frozen.values)
    )
    assert counts["edges"] == len(graph.weight)
    assert 0 < counts["influence_left_out"] < 1
    assert "rest" in kinds(graph)


def test_a_graph_with_room_leaves_out_only_what_has_no_influence(frozen):
    graph = graph_of(frozen, max_nodes=4000)
    assert graph.counts["influence_left_out"] == 0
    assert "rest" not in kinds(graph)
    smaller = graph_of(frozen, max_nodes=30)
    assert (
        smaller.counts["influence_left_out"]
        < graph_of(frozen, max_nodes=10).counts["influence_left_out"]
    )


def test_rows_that_keep_few_inputs_apart_still_sum_to_values_and_count_the_rest(
    frozen, monkeypatch
):
    whole = graph_of(frozen, max_nodes=30)
    monkeypatch.setattr(rows, "N_INPUTS", 5)
    graph = graph_of(frozen, max_nodes=30)
    fed = np.isin(kinds(graph), ("latent", "target"))
    np.testing.assert_allclose(graph.row_sums()[fed], graph.values[fed], atol=1e-9)
    latent_edges = np.isin(kinds(graph)[graph.source], ("latent",))
    assert np.bincount(graph.target[latent_edges]).max() <= 5
    assert graph.counts["influence_left_out"] > whole.counts["influence_left_out"]
    assert graph.counts["edges"] < whole.counts["edges"]


def test_a_walk_at_a_time_changes_nothing(frozen, monkeypatch):
    expected = graph_of(frozen, max_nodes=30)
    monkeypatch.setattr(rows, "WORKSPACE", {"cpu": 1})
    found = graph_of(frozen, max_nodes=30)
    assert found.nodes == expected.nodes
    np.testing.assert_allclose(found.weight, expected.weight, rtol=1e-10, atol=1e-12)


def test_positions_with_many_latents_do_not_pad_the_others(frozen, monkeypatch):
    expected = graph_of(frozen, max_nodes=30)
    monkeypatch.setattr(active, "TABLE", 1)
    assert len(replace(frozen.actives[0])._tables) == frozen.n_pos
    parts = tuple(replace(one) for one in frozen.actives)
    found = graph_of(replace(frozen, actives=parts), max_nodes=30)
    np.testing.assert_allclose(found.weight, expected.weight, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(parts[2].written(), frozen.actives[2].written())


def test_float32_is_exact_to_a_ten_thousandth(frozen):
    exact, found = (graph_of(frozen, max_nodes=40, precision=p) for p in ("float64", "float32"))
    fed = np.isin(kinds(found), ("latent", "target"))
    error = np.abs(found.row_sums() - found.values)[fed]
    assert 0 < error.max() < 1e-4 * np.abs(found.values[fed]).max()
    assert found.nodes == exact.nodes
    np.testing.assert_allclose(found.weight, exact.weight, rtol=1e-3, atol=1e-5)


def test_a_graph_stops_at_the_stated_share_of_influence(frozen):
    whole = graph_of(frozen, max_nodes=4000, batch_size=1)
    part = graph_of(frozen, max_nodes=4000, batch_size=1, stop_share=0.6)
    assert part.counts["influence_left_out"] <= 0.4
    before = graph_of(frozen, max_nodes=part.counts["latents"] // 2, batch_size=1)
    assert before.counts["influence_left_out"] > 0.4
    assert part.counts["latents"] < whole.counts["latents"]


def test_a_local_graph_explains_a_latent(frozen):
    codes = frozen.actives[3].codes
    target = latent_target(frozen, 3, int(codes.latent[-1]), 7)
    assert target.value == pytest.approx(float(codes.values[-1]), abs=1e-10)
    graph = graph_of(frozen, target, max_nodes=50)
    assert graph.row_sums()[-1] == pytest.approx(target.value, abs=1e-9)
    assert all(node.layer <= 2 for node in graph.nodes[:-1])


def test_a_target_is_the_models_own_logit(frozen, lm64):
    logits = lm64.logits(prompt_of(lm64)[None])[0, -1]
    exact = 1e-9 if frozen.weights.W_pos is not None else 1e-4
    assert logit_target(frozen, 3, 5).value == pytest.approx(
        float(logits[3] - logits[5]), abs=exact
    )
    centred = float(logits[3] - logits.mean())
    assert logit_target(frozen, 3).value == pytest.approx(centred, abs=exact)
    found = next_token_probabilities(frozen)
    torch.testing.assert_close(found, logits.softmax(0), rtol=0, atol=exact)


def test_targets_that_do_not_exist_are_refused(frozen):
    with pytest.raises(UsageError, match="no token 99; the vocabulary has 0 to 15"):
        logit_target(frozen, 99)
    with pytest.raises(UsageError, match="are the same"):
        logit_target(frozen, 3, 3)
    with pytest.raises(UsageError, match="Position 8 is not in the prompt, which has 0 to 7"):
        logit_target(frozen, 3, position=8)
    with pytest.raises(UsageError, match="does not fire at position 7"):
        latent_target(frozen, 0, 999, 7)


def test_a_model_without_saes_has_a_graph_of_leaves(gpt64):
    frozen = freeze(gpt64, hosts(gpt64, {}), prompt_of(gpt64))
    graph = graph_of(frozen)
    assert set(kinds(graph)) == {"embedding", "position", "mlp", "bias", "target"}
    assert graph.row_sums()[-1] == pytest.approx(graph.values[-1], abs=1e-10)


def test_direct_inputs_are_the_targets_row_of_the_graph(frozen):
    target = logit_target(frozen, 3, 5)
    graph = attribution_graph(
        frozen,
        target,
        ("a",) * frozen.n_pos,
        GraphOptions(max_nodes=10**6, stop_share=1, precision="float64"),
    )
    last = len(graph.nodes) - 1
    expected = {
        graph.nodes[source]: weight
        for source, end, weight in zip(graph.source, graph.target, graph.weight, strict=True)
        if end == last
    }
    found = direct_inputs(frozen, target)
    assert dict(found) == pytest.approx(expected)
    assert sum(weight for _, weight in found) == pytest.approx(target.value)
