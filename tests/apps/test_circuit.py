"""The Circuit page on a graph whose numbers are known."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from apps.circuit_cases import NAME, POSITION, TOKENS, write_circuit
from apps.driving import Open, address, drawn
from feature_browser.data.catalogue import read_catalogue
from feature_browser.draw.numbers import MINUS
from feature_browser.pages.circuit.address import CircuitAddress
from feature_browser.pages.circuit.graphs import Kept, graphs_beside, pins_of, pins_text, prepared
from feature_browser.pages.circuit.groups import groups_path, read_groups, save_group
from feature_browser.pages.circuit.layout import lay_out
from feature_browser.pages.circuit.pins import REST, flow_table
from old_hdf5 import as_before

from saelab.analysis.circuits.graph_file import load_graph_hdf5

FIVE, SEVEN = f"heads 5 @{POSITION}", f"plain 7 @{POSITION}"


@pytest.fixture(scope="module")
def root(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run `heads` with one graph that also has a latent of `plain`; `bare` has neither."""
    root = tmp_path_factory.mktemp("circuits")
    for name, source in (("heads", "signed"), ("plain", "plain"), ("bare", "bare")):
        shutil.copytree(runs / source, root / name)
    write_circuit(root / "heads")
    return root


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return shutil.copytree(root, tmp_path / "copy")


@pytest.fixture(scope="module")
def found(root: Path):
    path = root / "heads" / "circuits" / f"{NAME}.h5"
    return prepared(path, load_graph_hdf5(path))


def graph(open_app: Open, root: Path, **address: str) -> str:
    return drawn(open_app(root, view="circuit", run="heads", graph=NAME, **address))


# What is computed of a graph


def test_what_passes_along_edges_is_what_nodes_give(found):
    into = np.bincount(found.graph.target, found.flow, len(found.ids))
    out = np.bincount(found.graph.source, found.flow, len(found.ids))
    latents = [n for n, node in enumerate(found.graph.nodes) if node.kind == "latent"]
    np.testing.assert_allclose(into[latents], found.given[latents])
    np.testing.assert_allclose(out[:-1], found.given[:-1])
    assert into[-1] == pytest.approx(10.0)
    assert found.given[found.numbers["embedding: embedding @1"]] == pytest.approx(5.75)


def test_without_nodes_the_graph_says_what_is_left(found):
    five, seven = found.numbers[FIVE], found.numbers[SEVEN]
    assert found.frozen_value({}) == pytest.approx(10.0)
    assert found.frozen_value({seven: 0.0}) == pytest.approx(4.0)
    assert found.frozen_value({five: 0.0}) == pytest.approx(10.0 - 4.0 + 1.0)
    # Through both once: latent 7 takes what it gets of latent 5 with it.
    assert found.together([five, seven]) == pytest.approx(5.0)
    assert found.frozen_value({seven: 3.0}) == pytest.approx(22.0)


def test_every_kept_node_has_a_place_of_its_own(found):
    everything = Kept(np.ones(len(found.ids), bool), np.ones(len(found.graph.weight), bool))
    layout = lay_out(found, everything)
    assert len(set(layout.places.values())) == len(found.ids)
    height = dict(layout.rows)
    assert height["target"] < height["plain"] < height["heads"] < height["embeddings"]
    assert all(0 < x < layout.width and 0 < y < layout.height for x, y in layout.places.values())


def test_of_a_huge_graph_the_most_influential_nodes_are_drawn(found, monkeypatch):
    monkeypatch.setattr("feature_browser.pages.circuit.graphs.MOST_NODES", 4)
    few = replace(found, parts={}).pruned(100, 100)
    assert few.nodes.sum() == 4
    assert few.nodes[found.target]
    assert found.influence[few.nodes].min() >= found.influence[~few.nodes].max()
    drawn_ends = few.nodes[found.graph.source] & few.nodes[found.graph.target]
    assert not (few.edges & ~drawn_ends).any()


def test_pins_are_read_back_and_unknown_ones_counted(found):
    pins = [found.numbers[SEVEN], found.numbers[FIVE]]
    assert pins_of(pins_text(found, pins), found) == (pins, 0)
    assert pins_of(f"{FIVE}|nothing|{FIVE}||x @1", found) == (pins[1:], 2)


def test_the_page_of_another_run_knows_graphs_with_its_latents(root: Path):
    catalogue = read_catalogue(root)
    beside = graphs_beside(catalogue, catalogue.runs["plain"])
    assert [(card.name, path.stem) for card, path in beside] == [("heads", NAME)]
    assert graphs_beside(catalogue, catalogue.runs["bare"]) == []


def test_supernodes_pass_on_what_their_nodes_do(found):
    groups = {"both": [found.numbers[FIVE], found.numbers[SEVEN]]}
    table = flow_table(found, groups)
    both, rest, target = range(3)
    assert table[both, target] == pytest.approx(5.0)
    assert table[rest, both] == pytest.approx(5.0)
    assert table[rest, target] == pytest.approx(5.0)
    assert table.sum() == pytest.approx(found.flow.sum())
    assert REST not in groups


# The page


def test_without_circuits_the_command_is_said(open_app: Open, root: Path):
    page = drawn(open_app(root, view="circuit", run="bare"))
    assert f"saelab circuit {root}/bare --prompt" in page


def test_the_only_circuit_is_opened(open_app: Open, root: Path):
    app = open_app(root, view="circuit", run="heads")
    assert address(app)["graph"] == NAME
    assert "= 10.00" in drawn(app)


def test_several_circuits_are_listed_with_their_numbers(open_app: Open, copy: Path):
    write_circuit(copy / "heads", "other", scores={}, faithfulness=None)
    page = drawn(open_app(copy, view="circuit", run="heads"))
    assert "2 circuits of heads" in page
    assert "&lt;her&gt;" in page
    assert "<img" not in page
    assert "0.88" in page
    assert "25.0" in page
    assert f"graph={NAME}" in page


def test_a_circuit_of_another_run_is_listed_where_its_latents_are(open_app: Open, root: Path):
    page = drawn(open_app(root, view="circuit", run="plain"))
    assert f"run=heads&amp;graph={NAME}" in page


@pytest.mark.parametrize("name", ["nothing", "../circuits/b-to-her", "<b>", "b-to-her.h5"])
def test_an_unknown_circuit_is_answered_on_the_page(open_app: Open, root: Path, name: str):
    page = drawn(open_app(root, view="circuit", run="heads", graph=name))
    assert "There is no circuit" in page
    assert "<b>" not in page.split("There is no circuit")[1].split("</h1>")[0]


def test_a_damaged_circuit_says_so_and_leaves_the_others(open_app: Open, copy: Path):
    (copy / "heads" / "circuits" / "broken.h5").write_bytes(b"no HDF5")
    listed = drawn(open_app(copy, view="circuit", run="heads"))
    assert "1 circuit of heads" in listed
    assert "is not a whole circuit file" in listed
    page = drawn(open_app(copy, view="circuit", run="heads", graph="broken"))
    assert "This cannot be shown" in page


def test_a_circuit_that_does_not_place_its_saes_is_refused(open_app: Open, copy: Path):
    write_circuit(copy / "heads", saes={"heads": {"depth": 1}})
    assert "does not say where its SAEs stand" in graph(open_app, copy)


def test_the_picture_hides_what_the_filters_say_and_counts_it(open_app: Open, root: Path):
    page = graph(open_app, root, nodes="100", edges="100")
    assert page.count('class="node"') == 12
    assert "hidden by filter: 0 nodes, 0 edges" in page
    few = graph(open_app, root, nodes="30", edges="98")
    hidden = 12 - few.count('class="node"')
    assert hidden > 0
    assert f"hidden by filter: {hidden} nodes" in few


def test_the_sliders_write_the_address(open_app: Open, root: Path):
    app = open_app(root, view="circuit", run="heads", graph=NAME)
    assert app.slider(key="circuit-nodes").value == 80
    app.slider(key="circuit-nodes").set_value(100).run()
    assert address(app)["nodes"] == "100"
    app.query_params["nodes"] = "55"
    assert app.run().slider(key="circuit-nodes").value == 55


@pytest.mark.parametrize("value", ["x", "-1", "101", "1e9", "٣"])
def test_nonsense_in_the_address_is_the_default(open_app: Open, root: Path, value: str):
    app = open_app(root, view="circuit", run="heads", graph=NAME, nodes=value, edges=value)
    assert app.slider(key="circuit-nodes").value in (80, 3)
    assert not app.exception


def test_hostile_tokens_are_shown_and_do_nothing(open_app: Open, root: Path):
    page = graph(open_app, root, nodes="100")
    assert "<img" not in page
    assert "\u202e" not in page
    assert "&lt;img src=x" in page


def test_a_picked_node_is_explained(open_app: Open, root: Path):
    page = graph(open_app, root, node=FIVE)
    card = page.split("<h2>Node</h2>")[1].split("<h2>Pinned")[0]
    assert "latent 5 of heads, which reads attention heads" in card
    assert "pending female" in card  # its known feature
    assert "+5.00" in card  # from the embedding, in its own units
    assert f"{MINUS}1.00" in card
    assert "?run=heads&amp;latent=5" in card
    assert "view=attention" in card
    assert f"pos={POSITION}" in card
    assert 'class="edge pos near"' in page


def test_a_leaf_and_an_unknown_node_say_so(open_app: Open, root: Path):
    assert "A leaf: nothing in the graph." in graph(open_app, root, node="bias b_V 0")
    assert "The graph has no node &lt;b&gt;." in graph(open_app, root, node="<b>")


def test_a_picked_node_is_shown_whatever_the_filter(open_app: Open, root: Path):
    page = graph(open_app, root, nodes="0", node="heads 6 @3")
    assert 'class="picked"' in page


def test_pins_are_listed_ringed_and_summed(open_app: Open, root: Path):
    page = graph(open_app, root, pins=f"{FIVE}|{SEVEN}|gone @1")
    assert page.count('class="pin"') == 2
    assert "1 pinned node is not in this graph." in page
    assert "Together they give the target +5.00" in page


def test_without_pins_nothing_can_be_named_or_changed(open_app: Open, root: Path):
    app = open_app(root, view="circuit", run="heads", graph=NAME)
    assert {button.key for button in app.button} == set()
    assert "Pin latents to take them away" in drawn(app)
    app.query_params["pins"] = f"bias b_V 0|{SEVEN}"
    assert {button.key for button in app.run().button} == {"circuit-save", "circuit-run"}
    app.query_params["pins"] = "bias b_V 0"
    assert {button.key for button in app.run().button} == {"circuit-save"}
    assert "None of the pinned nodes is a latent" in drawn(app)


def test_a_graph_whose_run_is_gone_says_so_when_run_live(open_app: Open, copy: Path):
    shutil.rmtree(copy / "plain")
    app = open_app(copy, view="circuit", run="heads", graph=NAME, pins=FIVE)
    app.button(key="circuit-run").click().run()
    assert "The graph has latents of plain, but no run of that name" in drawn(app)


# Supernodes


def test_pins_are_named_kept_shown_and_forgotten(open_app: Open, copy: Path):
    app = open_app(copy, view="circuit", run="heads", graph=NAME, pins=f"{FIVE}|{SEVEN}")
    app.text_input(key="circuit-label").set_value("<i>copy</i> it")
    app.button(key="circuit-save").click().run()
    path = copy / "heads" / "circuits" / f"{NAME}.h5"
    assert read_groups(path) == {"<i>copy</i> it": [FIVE, SEVEN]}
    page = drawn(app)
    assert "&lt;i&gt;copy&lt;/i&gt; it" in page
    assert "What the supernodes give each other" in page
    app.button(key="circuit-forget").click().run()
    assert read_groups(path) == {}
    assert "What the supernodes give each other" not in drawn(app)


def test_an_empty_label_is_refused_in_words(open_app: Open, copy: Path):
    app = open_app(copy, view="circuit", run="heads", graph=NAME, pins=FIVE)
    app.button(key="circuit-save").click().run()
    assert "A label has 1 to 80 characters" in drawn(app)


def test_a_supernode_of_one_node_is_counted_as_one(open_app: Open, copy: Path):
    app = open_app(copy, view="circuit", run="heads", graph=NAME, pins=FIVE)
    app.text_input(key="circuit-label").set_value("alone")
    app.button(key="circuit-save").click().run()
    assert '<span class="sub">1 node</span>' in drawn(app)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"format": "other/1"}', '{"format": "saelab-circuit-groups/1"}',
             '{"format": "saelab-circuit-groups/1", "groups": {"a": [1]}}'],
)  # fmt: skip
def test_a_damaged_file_of_supernodes_is_said_and_not_overwritten(
    open_app: Open, copy: Path, text: str
):
    path = groups_path(copy / "heads" / "circuits" / f"{NAME}.h5")
    path.parent.mkdir()
    path.write_text(text)
    app = open_app(copy, view="circuit", run="heads", graph=NAME, pins=FIVE)
    assert path.name in drawn(app)
    app.text_input(key="circuit-label").set_value("x")
    app.button(key="circuit-save").click().run()
    assert path.read_text() == text


def test_a_directory_that_cannot_be_written_is_said(tmp_path: Path):
    from saelab.config import UsageError

    (tmp_path / "groups").write_text("a file where the directory should be")
    with pytest.raises(UsageError, match="cannot be written"):
        save_group(tmp_path / "g.h5", "label", [FIVE])


def test_groups_saved_by_several_at_once_are_all_kept(tmp_path: Path):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: save_group(tmp_path / "g.h5", f"group {n}", [FIVE]), range(40)))
    assert len(read_groups(tmp_path / "g.h5")) == 40


# Export


def exports(root: Path, **changes: str):
    from feature_browser.pages.circuit.graphs import open_graph
    from feature_browser.pages.circuit.node_names import NodeNames
    from feature_browser.pages.circuit.scene import GraphScene

    catalogue = read_catalogue(root)
    card = catalogue.runs["heads"]
    found = open_graph(card, NAME)
    assert found is not None
    place = CircuitAddress(run="heads", graph=NAME).to(**changes)
    pins, lost = pins_of(place.pins, found)
    kept = found.shown(int(place.nodes), int(place.edges), pins)
    groups = {"pair": [FIVE, SEVEN]}
    return GraphScene(NodeNames(found, catalogue, card), kept, place, pins, lost, groups), card


def test_the_export_is_what_is_shown_and_can_be_read_again(root: Path, tmp_path: Path):
    from feature_browser.pages.circuit.exports import exported_json

    from saelab.analysis.circuits.graph_json import load_graph

    scene, _ = exports(root, nodes="40", pins=f"{FIVE}|{SEVEN}")
    (tmp_path / "g.json").write_text(exported_json(scene))
    again = load_graph(tmp_path / "g.json")
    assert len(again.nodes) == scene.kept.nodes.sum()
    assert len(again.weight) == scene.kept.edges.sum()
    assert again.facts["view"] == {
        "node_threshold": 0.4,
        "edge_threshold": 0.98,
        "pins": [FIVE, SEVEN],
        "supernodes": {"pair": [FIVE, SEVEN]},
    }
    assert again.tokens == TOKENS


def test_the_export_for_other_viewers_has_pins_and_supernodes(root: Path):
    from feature_browser.pages.circuit.exports import exported_circuit_tracer

    scene, card = exports(root, pins=f"{FIVE}|{SEVEN}")
    values = json.loads(exported_circuit_tracer(scene, card))
    ids = [f"0_5_{POSITION}", f"1_7_{POSITION}"]
    assert values["qParams"]["pinnedIds"] == ids
    assert values["qParams"]["supernodes"] == [["pair", *ids]]
    assert set(ids) <= {node["node_id"] for node in values["nodes"]}


def test_a_new_computation_of_the_graph_is_shown(open_app: Open, copy: Path):
    path = copy / "heads" / "circuits" / f"{NAME}.h5"
    assert "= 10.00" in graph(open_app, copy)
    with as_before(path) as h5:
        value = h5["node/value"]
        assert isinstance(value, h5py.Dataset)
        value[-1] = 12.0
    assert "= 12.00" in graph(open_app, copy)
