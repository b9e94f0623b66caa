import re

import pytest
from apps.circuit_cases import POSITION, write_circuit
from feature_browser.pages.circuit.graphs import OpenGraph, prepared
from feature_browser.pages.circuit.pins import flow_table
from feature_browser.pages.circuit.supernodes import BOX, MOST_GROUPS, TALL, supernode_picture

from saelab.analysis.circuits.graph_file import load_graph_hdf5

FIVE, SIX, SEVEN = f"heads 5 @{POSITION}", "heads 6 @3", f"plain 7 @{POSITION}"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> OpenGraph:
    path = write_circuit(tmp_path_factory.mktemp("graph"))
    return prepared(path, load_graph_hdf5(path))


def drawn(found: OpenGraph, groups: dict[str, list[int]]) -> str:
    return supernode_picture(found, groups, flow_table(found, groups))


def boxes(picture: str) -> list[tuple[float, float]]:
    found = re.findall(r'<rect class="group" x="([-\d.]+)" y="([-\d.]+)"', picture)
    return [(float(x), float(y)) for x, y in found]


def test_each_group_is_one_node_below_what_it_gives_to(found: OpenGraph):
    groups = {"late": [found.numbers[SEVEN]],
              "<b>early</b>": [found.numbers[FIVE], found.numbers[SIX]]}  # fmt: skip
    picture = drawn(found, groups)
    assert "&lt;b&gt;early&lt;/b&gt;" in picture
    assert "2 nodes" in picture
    late, early, target = boxes(picture)
    assert early[1] > late[1] > target[1]
    # Early gives late 6 and the target -1; late gives the target 6.
    flows = re.findall(r'class="flow"[^>]*>([^<]+)<', picture)
    assert sorted(flows) == sorted(["+6.00", "+6.00", "\u22121.00"])
    assert picture.count("edge neg") == 1


def test_boxes_do_not_overlap_and_those_beyond_the_most_are_said(found: OpenGraph):
    latents = [found.numbers[name] for name in (FIVE, SIX, SEVEN)]
    groups = {f"group {i}": [latents[i % 3]] for i in range(MOST_GROUPS + 3)}
    picture = drawn(found, groups)
    places = boxes(picture)
    assert len(places) == MOST_GROUPS + 1
    for i, (x, y) in enumerate(places):
        assert all(abs(x - u) >= BOX or abs(y - v) >= TALL for u, v in places[:i])
    assert f"The first {MOST_GROUPS} are drawn." in picture


def test_a_group_that_gives_nothing_is_drawn_alone(found: OpenGraph):
    # The first nodes are the embeddings, and only that of position 1 gives anything.
    picture = drawn(found, {"nothing": [POSITION]})
    assert len(boxes(picture)) == 2
    assert "edge" not in picture
