"""Circuits as JSON: what is written is read back, and foreign files are refused."""

import json

import numpy as np
import pytest
from analysis.circuits.test_graph import graph_of

from saelab.analysis.circuits.graph_json import graph_json, load_graph, save_graph
from saelab.analysis.circuits.influence import prune
from saelab.config import UsageError


@pytest.fixture(scope="module")
def graph(frozen):
    return graph_of(frozen, max_nodes=20)


def test_a_graph_is_read_back_as_it_was(graph, tmp_path):
    for number, one in enumerate((graph, prune(graph))):
        path = tmp_path / f"{number}.json"
        save_graph(one, path)
        again = load_graph(path)
        assert again.nodes == one.nodes
        assert again.tokens == one.tokens
        assert again.counts == one.counts
        assert again.facts == one.facts
        for field in ("source", "target", "weight"):
            np.testing.assert_array_equal(getattr(again, field), getattr(one, field))


def test_the_file_says_what_each_node_gives_the_target(graph):
    found = graph_json(graph)
    assert found["nodes"][-1]["kind"] == "target"
    assert found["nodes"][-1]["influence"] == 1
    leaves = [n["attribution"] for n in found["nodes"] if n["kind"] not in ("latent", "target")]
    assert sum(leaves) == pytest.approx(found["facts"]["value"], abs=1e-8)
    assert found["facts"]["saes"]["blocks.1.hook_resid_pre"] == {
        "layer": 1,
        "kind": "residual",
        "depth": 4,
        "left_out": [],
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other/1"}, "has the format 'other/1'"),
        ({"nodes": []}, "its last node is no target"),
        ({"edges": [[3, 2, 1.0]]}, "does not go from a lower to a higher node"),
        ({"edges": [[0, 10**6, 1.0]]}, "does not go from a lower to a higher node"),
        ({"edges": [[0, 1]]}, "is not a circuit file: edges"),
        ({"nodes": [{"kind": "other"}]}, "is not a circuit file: nodes"),
        ({"facts": {"saes": [1]}}, "does not say where its SAEs stand"),
        ({"facts": {"saes": {"x": {"left_out": [99]}}}}, "does not say where its SAEs stand"),
        ({"facts": {"saes": {"x": {"left_out": "all"}}}}, "does not say where its SAEs stand"),
    ],
)
def test_files_that_are_no_circuit_are_refused(graph, tmp_path, change, message):
    path = tmp_path / "circuit.json"
    path.write_text(json.dumps(graph_json(graph) | change))
    with pytest.raises(UsageError, match=message):
        load_graph(path)


def test_missing_and_damaged_files_are_refused(tmp_path):
    path = tmp_path / "circuit.json"
    with pytest.raises(UsageError, match="does not exist"):
        load_graph(path)
    path.write_text('{"format": "sae')
    with pytest.raises(UsageError, match="is not whole JSON"):
        load_graph(path)
