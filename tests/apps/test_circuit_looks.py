"""Why heads looked where they did, on the Circuit page."""

import shutil
from pathlib import Path

import pytest
from apps.circuit_cases import POSITION, TOKENS, write_circuit
from apps.driving import Open, drawn
from feature_browser.draw.numbers import MINUS


@pytest.fixture(scope="module")
def root(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("looks")
    for name, source in (("heads", "signed"), ("plain", "plain")):
        shutil.copytree(runs / source, root / name)
    return root


def side(kind: str, name: str, position: int, latent: int | None = None) -> dict[str, object]:
    where = {"kind": kind, "name": name, "layer": 1, "position": position, "latent": latent}
    return {**where, "label": f"{name} @{position}"}


LOOK = {
    "layer": 2,
    "head": 3,
    "dest": POSITION,
    "source": 1,
    "gives": 1.5,
    "pattern": 0.75,
    "score": 4.0,
    "advantage": -0.5,
    "by_kind": {"latents": 3.25, "errors": 0.75},
    "pairs": [
        {
            "query": side("latent", "heads", POSITION, 5),
            "key": side("latent", "heads", 1, 31),
            "part": 3.25,
        }
    ],
}


def test_a_heads_score_is_shown_by_pairs_with_links_to_their_nodes(open_app: Open, root: Path):
    write_circuit(root / "heads", "looks", attention=[LOOK])
    text = drawn(open_app(root, view="circuit", run="heads", graph="looks"))
    assert "Head 2.3" in text
    assert f"{MINUS}0.50" not in text
    assert "0.50 below its mean" in text
    assert "+3.25 of two latents, +0.75 with an SAE" in text
    shown = text.partition("Why heads looked there")[2]
    assert shown.index("node=heads+5+%404") < shown.index("heads 31") < shown.index("+3.25")
    assert "<img src=x" not in text


@pytest.mark.parametrize("wrong", [{"source": len(TOKENS)}, {"pattern": "x"}, {"pairs": 3}])
def test_a_damaged_list_of_looks_is_named(open_app: Open, root: Path, wrong: dict[str, object]):
    write_circuit(root / "heads", "wrong", attention=[LOOK | wrong])
    text = drawn(open_app(root, view="circuit", run="heads", graph="wrong"))
    assert "list of attention weights is damaged" in text
