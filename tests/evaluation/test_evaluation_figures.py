"""The figures of an evaluation show the numbers of its files."""

import json
from dataclasses import asdict
from typing import Any

import pytest
import torch
from evaluation.cases import measured, random_dense, rows_of, sae_with, sparse

from saelab.analysis.evaluation_figures import (
    absorption_figure,
    density_figure,
    description_length_figure,
    l0_figure,
)
from saelab.evaluation.density import DensityCounts
from saelab.evaluation.mdl import description_length


def parts(figure) -> tuple[Any, Any]:
    """Traces and layout."""
    return figure.data, figure.layout


def from_json(value) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(value)))


@pytest.fixture
def density():
    dense = random_dense(200, 12, signed=True) * (torch.arange(12) > 1)
    counts = DensityCounts(12, torch.device("cpu"))
    counts.update(sparse(dense))
    return from_json(counts.results())


def test_every_living_latent_stands_in_a_bar_and_the_dead_are_named(density):
    (bars,), layout = parts(density_figure(density))
    assert sum(bars.y) == 10
    assert layout.title.text == "2 of 12 latents never fire"
    for centre, n in zip(bars.x, bars.y, strict=True):
        low, high = 10 ** (centre - bars.width / 2), 10 ** (centre + bars.width / 2)
        inside = sum(low <= f < high or high == f == 1 for f in density["frequency"])
        assert inside == n


def test_the_shares_of_tokens_sum_to_one(density):
    (bars,), _ = parts(l0_figure(density))
    assert sum(bars.y) == pytest.approx(1)
    mean = sum(x * y for x, y in zip(bars.x, bars.y, strict=True))
    assert mean == pytest.approx(density["mean_l0"])


def test_each_run_has_a_curve_of_its_levels():
    W = torch.eye(5)
    z = random_dense(100, 5)
    found = description_length(rows_of(z @ W, sparse(z)), sae_with(W), tolerance=0.01)
    length = from_json(measured(found))
    (one, other), _ = parts(description_length_figure({"one": length, "other": length}))
    assert (one.name, other.name) == ("one", "other")
    assert list(one.y) == [level["bits"] for level in length["curve"]]
    assert one.line.color != other.line.color


def test_labels_are_sorted_by_what_is_absorbed():
    def task(name, fraction):
        return {"name": name, "rate": {"n_rows": 9, "fraction": fraction, "full": fraction / 2}}

    tasks = [task("a_b", 0.5), task("c", 0.1)]
    (in_part, fully), _ = parts(absorption_figure({"tasks": tasks}))
    assert list(in_part.y) == ["c", "a b"]
    assert list(in_part.x) == [0.1, 0.5]
    assert list(fully.x) == [0.05, 0.25]
