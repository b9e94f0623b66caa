"""Influence by paths, pruning that counts what it drops, and scores in their range."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from analysis.circuits.cases import hosts, prompt_of
from analysis.circuits.test_graph import graph_of

from saelab.analysis.circuits.frozen import Frozen, freeze
from saelab.analysis.circuits.graph_data import AttributionGraph
from saelab.analysis.circuits.influence import (
    PruneOptions,
    graph_scores,
    node_influence,
    prune,
)
from saelab.analysis.circuits.nodes import Node
from saelab.host.host import Host
from saelab.sae.topk import TopKConfig


def small() -> AttributionGraph:
    """embedding -> a (2), error -> a (-2); a -> target (3), b -> target (1), embedding -> b (1)."""
    nodes = (
        Node("embedding", "embedding", -1, 0),
        Node("error", "sae", 0, 0),
        Node("latent", "sae", 0, 0, 1, 0.5),
        Node("latent", "sae", 0, 0, 2, 1.0),
        Node("target", "logit", 1, 0, None, 4.0),
    )
    edges = np.array([(0, 2, 2.0), (1, 2, -2.0), (0, 3, 1.0), (2, 4, 3.0), (3, 4, 1.0)])
    source, target = edges[:, 0].astype(np.int64), edges[:, 1].astype(np.int64)
    return AttributionGraph(nodes, source, target, edges[:, 2], ("x",), {"edges": 5}, {})


def biases(graph: AttributionGraph) -> np.ndarray:
    return np.array([node.kind == "bias" for node in graph.nodes])


def test_influence_is_the_sum_over_paths_of_products_of_shares():
    assert node_influence(small()).tolist() == [0.75 * 0.5 + 0.25, 0.375, 0.75, 0.25, 1.0]


def test_influence_is_the_matrix_series(frozen):
    graph = graph_of(frozen, max_nodes=40)
    n = len(graph.nodes)
    A = np.zeros((n, n))
    np.add.at(A, (graph.target, graph.source), np.abs(graph.weight))
    A[:, biases(graph)] = 0
    A /= np.maximum(A.sum(1, keepdims=True), 1e-300)
    series = np.linalg.solve(np.eye(n) - A.T, np.eye(n)[-1])
    np.testing.assert_allclose(node_influence(graph), series, atol=1e-12)


def test_thresholds_of_one_keep_all_that_leads_to_the_target_and_lower_ones_no_biases(frozen):
    # P7.9
    graph = graph_of(frozen, max_nodes=40)
    whole = prune(graph, PruneOptions(node_threshold=1.0, edge_threshold=1.0))
    kept = (node_influence(graph) > 0) | biases(graph)
    kept |= np.array([node.kind == "embedding" for node in graph.nodes])
    assert len(whole.nodes) == kept.sum()
    assert len(whole.weight) == len(graph.weight)
    assert whole.counts["pruned_influence"] == 0
    assert biases(whole).any()
    assert not biases(prune(graph, PruneOptions(node_threshold=0.999, edge_threshold=1.0))).any()


def test_pruning_drops_the_weak_and_counts_them():
    pruned = prune(small(), PruneOptions(node_threshold=0.6, edge_threshold=1.0))
    assert [node.label() for node in pruned.nodes] == ["embedding @0", "sae 1 @0", "logit @0"]
    assert (pruned.counts["pruned_nodes"], pruned.counts["pruned_edges"]) == (2, 3)
    lost = (0.375 + 0.25) / (0.625 + 0.375 + 0.75 + 0.25)
    assert pruned.counts["pruned_influence"] == pytest.approx(lost)
    assert pruned.weight.tolist() == [2.0, 3.0]


def test_edges_are_ranked_in_the_graph_of_the_kept_nodes():
    # Without b and the error, both edges carry all of the influence. In the whole graph the one
    # from a has 0.75 and that into it 0.375, so 0.6 of both would be the first alone.
    pruned = prune(small(), PruneOptions(node_threshold=0.6, edge_threshold=0.6))
    assert pruned.weight.tolist() == [2.0, 3.0]


def test_latents_that_lead_nowhere_or_come_from_nowhere_go(frozen):
    pruned = prune(graph_of(frozen, max_nodes=60), PruneOptions())
    latents = {i for i, node in enumerate(pruned.nodes) if node.kind == "latent"}
    assert latents
    assert latents <= set(pruned.source.tolist())
    assert latents <= set(pruned.target.tolist())
    assert (pruned.source < pruned.target).all()


def test_scores_lie_between_zero_and_one_and_fall_with_errors():
    scores = graph_scores(small())
    assert scores.replacement == pytest.approx(0.625)
    # Of a's inputs half are errors; a has 0.75 of the 3.0 of influence, 1.0 is the target's own.
    assert scores.completeness == pytest.approx((3.0 - 0.75 * 0.5) / 3.0)
    assert scores.error_influence == pytest.approx(0.375)
    assert scores.mlp_influence == 0


def test_scores_are_one_where_latents_explain_everything(gpt64):
    # P7.8: identity SAEs and transcoders without an error.
    frozen = freeze(gpt64, lossless(gpt64), prompt_of(gpt64))
    explained = tuple(
        replace(a, error=torch.zeros_like(a.error)) if a.place.kind == "mlp" else a
        for a in frozen.actives
    )
    graph = graph_of(Frozen(frozen.weights, frozen.record, explained), max_nodes=4000)
    assert "mlp" not in [node.kind for node in graph.nodes]
    scores = graph_scores(graph)
    assert scores.replacement == pytest.approx(1.0, abs=1e-5)
    assert scores.completeness == pytest.approx(1.0, abs=1e-5)


def lossless(lm) -> list[Host]:
    """Dictionaries whose latents are the coordinates, of both signs; MLPs get some transcoder."""
    sae = TopKConfig(d_sae=32, k=32).build(16)
    with torch.no_grad():
        both = torch.cat([torch.eye(16), -torch.eye(16)])
        sae.W_dec.copy_(both)
        sae.W_enc.copy_(both.T)
    sae.requires_grad_(requires_grad=False)
    found = [Host.at(lm, sae, f"blocks.{layer}.attn.hook_z") for layer in range(3)]
    found += [
        Host(lm, sae, f"blocks.{i}.ln2.hook_out", f"blocks.{i}.hook_mlp_out", f"mlp {i}")
        for i in range(3)
    ]
    return found


def test_budgeted_graphs_count_what_was_left_out_as_unexplained(frozen):
    whole, part = (graph_scores(graph_of(frozen, max_nodes=n)) for n in (4000, 10))
    for scores in (whole, part):
        assert 0 <= scores.replacement <= 1
        assert 0 <= scores.completeness <= 1
    assert part.completeness < whole.completeness


def test_random_dictionaries_have_errors(gpt64):
    frozen = freeze(gpt64, hosts(gpt64), prompt_of(gpt64))
    assert graph_scores(graph_of(frozen)).error_influence > 0.05
