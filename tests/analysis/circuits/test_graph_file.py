"""Circuits as HDF5: small, complete, and refused where damaged."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from analysis.circuits.test_graph import graph_of
from old_hdf5 import as_before

from saelab.analysis.circuits.graph_data import AttributionGraph
from saelab.analysis.circuits.graph_file import (
    load_graph_hdf5,
    own_path,
    read_graph_summary,
    save_graph_hdf5,
)
from saelab.analysis.circuits.nodes import Node
from saelab.config import UsageError


@pytest.fixture(scope="module")
def graph(frozen):
    return graph_of(frozen, max_nodes=20)


def edges(graph):
    return sorted(
        zip(graph.target.tolist(), graph.source.tolist(), graph.weight.tolist(), strict=True)
    )


def test_a_graph_is_read_back_with_weights_of_float32(graph, tmp_path):
    save_graph_hdf5(graph, tmp_path / "g.h5")
    again = load_graph_hdf5(tmp_path / "g.h5")
    assert again.nodes == graph.nodes
    assert again.tokens == graph.tokens
    assert again.counts == graph.counts
    assert again.facts == graph.facts
    np.testing.assert_allclose(np.array(edges(again)), np.array(edges(graph)), rtol=1e-6)


def test_a_million_edges_take_eight_bytes_each(tmp_path):
    generator = np.random.default_rng(0)
    nodes = tuple(Node("latent", "sae", 0, i % 7, i, 1.0) for i in range(1999))
    nodes = (*nodes, Node("target", "t", 1, 0, None, 1.0))
    source, target = np.tril_indices(2000, -1)[::-1]
    big = AttributionGraph(
        nodes, source, target, generator.normal(size=len(source)), ("a",) * 7, {}, {}
    )
    save_graph_hdf5(big, tmp_path / "g.h5")
    assert (tmp_path / "g.h5").stat().st_size < 8.2 * len(source)
    assert len(load_graph_hdf5(tmp_path / "g.h5").weight) == len(source) > 1_900_000


def test_damaged_and_missing_files_are_refused(graph, tmp_path):
    path = tmp_path / "g.h5"
    with pytest.raises(UsageError, match="does not exist"):
        load_graph_hdf5(path)
    save_graph_hdf5(graph, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UsageError, match="is not a whole circuit file"):
        load_graph_hdf5(path)


@pytest.mark.parametrize("name", ["node/layer", "edge/source", "facts"])
def test_a_file_without_a_part_is_refused(graph, tmp_path, name):
    path = tmp_path / "g.h5"
    save_graph_hdf5(graph, path)
    with as_before(path) as h5:
        del h5[name]
    with pytest.raises(UsageError, match="is not a whole circuit file"):
        load_graph_hdf5(path)


def test_edges_to_nodes_that_do_not_exist_are_refused(graph, tmp_path):
    path = tmp_path / "g.h5"
    save_graph_hdf5(graph, path)
    with as_before(path) as h5:
        source: Any = h5["edge/source"]
        source[0] = 10**6
    with pytest.raises(UsageError, match="from a lower to a higher node"):
        load_graph_hdf5(path)


def test_a_summary_is_read_without_nodes_and_edges(graph, tmp_path):
    path = tmp_path / "g.h5"
    save_graph_hdf5(graph, path)
    found = read_graph_summary(path)
    assert (found.n_nodes, found.n_edges) == (len(graph.nodes), len(graph.weight))
    assert (found.tokens, found.facts) == (graph.tokens, graph.facts)
    path.write_bytes(b"no HDF5 file")
    with pytest.raises(UsageError, match="is not a whole circuit file"):
        read_graph_summary(path)
    with pytest.raises(UsageError, match="does not exist"):
        read_graph_summary(tmp_path / "other.h5")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("node/position", 10**6, "outside its prompt"),
        ("node/value", np.nan, "not finite"),
        ("edge/weight", np.inf, "not finite"),
    ],
)
def test_impossible_numbers_are_refused(graph, tmp_path, name, value, message):
    path = tmp_path / "g.h5"
    save_graph_hdf5(graph, path)
    with as_before(path) as h5:
        column: Any = h5[name]
        column[0] = value
    with pytest.raises(UsageError, match=message):
        load_graph_hdf5(path)


def test_reading_a_graph_needs_no_torch():
    code = (
        "import sys, saelab.analysis.circuits.graph_file, saelab.analysis.circuits.influence;"
        "assert not {'torch', 'plotly'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_graph_of_another_question_does_not_replace_one(graph, tmp_path):
    path = tmp_path / "g.json"
    first = replace(graph, facts=graph.facts | {"prompt": "a b"})
    assert own_path(path, first) == path
    save_graph_hdf5(first, path.with_suffix(".h5"))
    # The same again replaces it.
    assert own_path(path, first) == path
    other = replace(graph, facts=graph.facts | {"prompt": "c b"})
    assert own_path(path, other) == tmp_path / "g-2.json"
    save_graph_hdf5(other, tmp_path / "g-2.h5")
    assert own_path(path, other) == tmp_path / "g-2.json"
    third = replace(graph, facts=other.facts | {"saes": {}})
    assert own_path(path, third) == tmp_path / "g-3.json"
    path.with_suffix(".h5").write_bytes(b"damaged")
    assert own_path(path, third) == path
