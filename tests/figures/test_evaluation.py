"""The figures of an evaluation show its numbers."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from evaluation.cases import measured, random_dense, rows_of, sae_with, sparse

from saelab.config import UsageError
from saelab.evaluation.absorption import Rate
from saelab.evaluation.density import DensityCounts
from saelab.evaluation.mdl import description_length
from saelab.evaluation.results import Evaluation
from saelab.figures.evaluation import (
    absorption_figure,
    density_figure,
    description_length_figure,
    evaluation_figure,
    l0_figure,
    recovery_figure,
)


def parts(figure) -> tuple[Any, Any]:
    """Traces and layout."""
    return figure.data, figure.layout


@pytest.fixture
def length():
    z, W = random_dense(100, 5), torch.eye(5)
    return measured(description_length(rows_of(z @ W, sparse(z)), sae_with(W), tolerance=0.01))


@pytest.fixture
def density():
    dense = random_dense(200, 12, signed=True) * (torch.arange(12) > 1)
    counts = DensityCounts(12, torch.device("cpu"))
    counts.update(sparse(dense))
    return counts.results()


def test_every_living_latent_stands_in_a_bar_and_the_dead_are_named(density):
    (bars,), layout = parts(density_figure(density))
    assert sum(bars.y) == 10
    assert layout.title.text == "2 of 12 latents never fire"
    for centre, n in zip(bars.x, bars.y, strict=True):
        low, high = 10 ** (centre - bars.width / 2), 10 ** (centre + bars.width / 2)
        inside = sum(low <= f < high or high == f == 1 for f in density.frequency)
        assert inside == n


def test_the_shares_of_tokens_sum_to_one(density):
    (bars,), _ = parts(l0_figure(density))
    assert sum(bars.y) == pytest.approx(1)
    mean = sum(x * y for x, y in zip(bars.x, bars.y, strict=True))
    assert mean == pytest.approx(density.mean_l0)


def test_each_run_has_a_curve_of_its_levels(length):
    (one, other), _ = parts(description_length_figure({"one": length, "other": length}))
    assert (one.name, other.name) == ("one", "other")
    assert list(one.y) == [level.bits for level in length.curve]
    assert one.line.color != other.line.color


def test_labels_are_sorted_by_what_is_absorbed():
    def task(name, fraction):
        rate = Rate(n_rows=9, fraction=fraction, full=fraction / 2)
        return SimpleNamespace(name=name, rate=rate)

    found: Any = SimpleNamespace(tasks=[task("a_b", 0.5), task("c", 0.1)])
    (in_part, fully), _ = parts(absorption_figure(found))
    assert list(in_part.y) == ["c", "a b"]
    assert list(in_part.x) == [0.1, 0.5]
    assert list(fully.x) == [0.05, 0.25]


def test_recovery_sets_the_probe_against_the_best_latent():
    scores = {"f1": 0.5, "probe_f1": 0.8, "probe_auroc": 0.9}
    feature = {"label": "name_female", "latent": 4, "sign": -1, **scores}
    (points,), _ = parts(recovery_figure([feature]))
    assert (list(points.x), list(points.y)) == ([0.8], [0.5])
    assert "name female" in points.text[0]
    assert points.marker.symbol == ("diamond",)


def test_an_evaluation_shows_the_figures_of_what_it_has(density, length):
    results = {"reconstruction": {"fvu": 0.5}, "density": density, "description_length": length}
    together, layout = parts(evaluation_figure(Evaluation(results)))
    alone = density_figure(density), l0_figure(density), description_length_figure(length)
    assert [trace.y for trace in together] == [figure.data[0]["y"] for figure in alone]
    assert layout.yaxis2.tickformat == ".0%"


def test_an_evaluation_without_a_figure_says_so():
    with pytest.raises(UsageError, match="Nothing that was measured has a figure"):
        evaluation_figure(Evaluation({"reconstruction": {"fvu": 0.5}}))
