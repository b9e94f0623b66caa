"""The export has the other tool's fields, unique nodes, and the same weights."""

import pytest
from analysis.circuits.test_graph import graph_of

from saelab.analysis.circuits.circuit_tracer import circuit_tracer_json

NODE = {"node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"}
TYPES = {"cross layer transcoder", "mlp reconstruction error", "embedding", "logit"}


@pytest.fixture(scope="module")
def graph(frozen):
    return graph_of(frozen, max_nodes=30)


@pytest.fixture(scope="module")
def exported(graph):
    return circuit_tracer_json(graph, slug="cat", scan="tiny")


def test_it_has_what_the_format_requires(exported):
    assert set(exported) == {"metadata", "qParams", "nodes", "links"}
    assert {"slug", "scan", "prompt_tokens", "prompt"} <= set(exported["metadata"])
    for node in exported["nodes"]:
        assert set(node) >= NODE
        assert node["feature_type"] in TYPES
        assert isinstance(node["layer"], str)
    for link in exported["links"]:
        assert set(link) == {"source", "target", "weight"}


def test_nodes_are_unique_and_links_stay_among_them(exported):
    ids = [node["node_id"] for node in exported["nodes"]]
    assert len(ids) == len(set(ids))
    assert len({node["jsNodeId"] + str(node["ctx_idx"]) for node in exported["nodes"]}) == len(ids)
    ends = {end for link in exported["links"] for end in (link["source"], link["target"])}
    assert ends <= set(ids)
    pairs = [(link["source"], link["target"]) for link in exported["links"]]
    assert len(pairs) == len(set(pairs))


def test_weights_are_the_graphs_with_positions_added_to_their_tokens(graph, exported):
    (logit,) = [node for node in exported["nodes"] if node["feature_type"] == "logit"]
    last = len(graph.nodes) - 1
    placed = {i for i, node in enumerate(graph.nodes) if node.position is not None}
    edges = zip(graph.source.tolist(), graph.target.tolist(), graph.weight.tolist(), strict=True)
    expected = sum(w for s, t, w in edges if t == last and s in placed)
    found = sum(link["weight"] for link in exported["links"] if link["target"] == logit["node_id"])
    assert found == pytest.approx(expected, abs=1e-9)


def test_latents_have_circuit_tracers_numbers(graph, exported):
    latent = next(node for node in graph.nodes if node.kind == "latent")
    depth = graph.facts["saes"][latent.name]["depth"]
    name = f"{depth}_{latent.latent}_{latent.position}"
    node = next(node for node in exported["nodes"] if node["node_id"] == name)
    total = depth + latent.latent
    assert node["feature"] == total * (total + 1) // 2 + latent.latent
    assert node["activation"] == latent.value
    assert 0 < node["influence"] <= 1
