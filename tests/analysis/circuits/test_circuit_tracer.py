"""The export has the other tool's fields, unique nodes, and the same weights."""

import json

import pytest
from analysis.circuits.cases import random_transcoder
from analysis.circuits.test_graph import graph_of

from saelab.analysis.circuits.circuit_tracer import circuit_tracer_json
from saelab.analysis.circuits.frozen import freeze

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


def row_of(graph, latent) -> int:
    """How many places before the latent's have nodes."""
    inner = [n for n in graph.nodes if n.kind in ("latent", "error", "mlp", "heads")]
    before = {graph.rank(n) for n in inner if n.position is not None}
    return sum(rank < graph.rank(latent) for rank in before)


def test_latents_have_circuit_tracers_numbers(graph, exported):
    latent = next(node for node in graph.nodes if node.kind == "latent")
    row = row_of(graph, latent)
    name = f"{row}_{latent.latent}_{latent.position}"
    node = next(node for node in exported["nodes"] if node["node_id"] == name)
    total = row + latent.latent
    assert node["feature"] == total * (total + 1) // 2 + latent.latent
    assert node["activation"] == latent.value
    assert 0 < node["influence"] <= 1


def test_pins_and_supernodes_are_named_by_the_viewers_ids(graph):
    latents = [node for node in graph.nodes if node.kind == "latent"][:3]
    bias = next(node for node in graph.nodes if node.kind == "bias")
    groups = {"cats": latents[:2], "none": [bias]}
    found = circuit_tracer_json(
        graph, slug="cat", scan="tiny", pinned=[*latents, bias], supernodes=groups
    )["qParams"]
    ids = [f"{row_of(graph, n)}_{n.latent}_{n.position}" for n in latents]
    assert found["pinnedIds"] == ids
    assert found["supernodes"] == [["cats", *ids[:2]]]


TEXT, NUMBER = (str,), (int, float)
REQUIRED = {
    "node_id": TEXT,
    "feature": (int,),
    "layer": TEXT,
    "ctx_idx": (int,),
    "feature_type": TEXT,
    "jsNodeId": TEXT,
    "clerp": TEXT,
    "influence": (*NUMBER, type(None)),
    "activation": (*NUMBER, type(None)),
    "token_prob": NUMBER,
    "is_target_logit": (bool,),
    "run_idx": (int,),
    "reverse_ctx_idx": (int,),
}
"""What circuit-tracer's reader and Neuronpedia's upload check of a node, and the types."""


def test_every_field_has_the_type_that_the_readers_check(exported):
    whole = json.loads(json.dumps(exported, allow_nan=False))
    assert all(set(node) == set(REQUIRED) for node in whole["nodes"])
    for node in whole["nodes"]:
        for name, types in REQUIRED.items():
            assert type(node[name]) in types, (name, node[name])
    assert all(type(link["weight"]) in NUMBER for link in whole["links"])
    metadata, params = whole["metadata"], whole["qParams"]
    assert all(isinstance(metadata[name], str) for name in ("slug", "scan", "prompt"))
    assert all(isinstance(token, str) for token in metadata["prompt_tokens"])
    assert metadata["transcoder_list"] == []
    assert set(params) == {"pinnedIds", "supernodes", "linkType", "clickedId", "sg_pos"}
    assert params["linkType"] == "both"


def test_ids_are_spelt_as_the_readers_spell_them(exported):
    for node in exported["nodes"]:
        layer, place = node["layer"], node["ctx_idx"]
        _, number, last = node["node_id"].split("_")
        assert node["node_id"].startswith(f"{layer}_")
        assert last == str(place)
        expected = {
            "cross layer transcoder": f"{layer}_{number}-0",
            "mlp reconstruction error": f"{layer}_-1-{place}",
            "embedding": f"E_{number}-{place}",
            "logit": f"L_{number}-{place}",
        }
        assert node["jsNodeId"] == expected[node["feature_type"]]
        if node["feature_type"] != "embedding":
            assert int(layer) >= 0


def test_no_row_of_the_viewer_is_empty_and_the_description_names_each(exported):
    rows = {int(node["layer"]) for node in exported["nodes"] if node["layer"] != "E"}
    assert rows == set(range(len(rows)))
    names = exported["metadata"]["info"]["description"].split("layers are ")[1].split(", from 0")[0]
    assert len(names.split(", ")) == len(rows) - 1


def test_viewers_find_the_probability_in_the_logits_text(exported):
    """They cut it out between "(p=" and ")", and draw nothing where that is missing."""
    (logit,) = [node for node in exported["nodes"] if node["feature_type"] == "logit"]
    text = logit["clerp"].split("(p=")[1].split(")")[0]
    assert float(text) == pytest.approx(logit["token_prob"], abs=5e-4)


def test_the_viewer_shows_every_node_of_the_file_until_its_slider_is_moved(exported):
    assert exported["metadata"]["node_threshold"] == 1
    shares = [node["influence"] for node in exported["nodes"] if node["influence"] is not None]
    assert len(shares) == len(exported["nodes"]) - 1
    assert max(shares) <= 1
    assert sum(share <= 0.8 for share in shares) < len(shares)


def test_of_transcoders_alone_layers_and_latents_are_those_of_circuit_tracer(gpt64, tokens):
    hosts = [random_transcoder(gpt64, layer) for layer in range(3)]
    frozen = freeze(gpt64, hosts, tokens)
    graph = graph_of(frozen, max_nodes=1000)
    found = {
        node["node_id"]: node for node in circuit_tracer_json(graph, slug="a", scan="b")["nodes"]
    }
    node = next(node for node in graph.nodes if node.kind == "latent" and node.layer == 2)
    made = found[f"2_{node.latent}_{node.position}"]
    assert made["layer"] == "2"
    latent = node.latent or 0
    assert made["feature"] == (2 + latent) * (3 + latent) // 2 + latent
    assert {made["layer"] for made in found.values()} == {"E", "0", "1", "2", "4"}
