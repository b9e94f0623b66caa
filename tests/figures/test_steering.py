"""Figures show every row, and text from a vocabulary cannot become markup."""

from typing import Any

import numpy as np

from saelab.analysis.steering.records import SteeringScores
from saelab.analysis.steering.success import Success
from saelab.analysis.steering.success_table import LatentSuccess, filter_table
from saelab.figures.steering import score_figure
from saelab.figures.style import LIGHT


def scores() -> SteeringScores:
    return SteeringScores(
        latent=np.array([0, 1, 0, 1]),
        sign=np.array([1, 1, -1, -1]),
        input=np.array([0.5, np.nan, 0.0, 1.0]),
        output=np.array([0.9, 0.1, -0.2, 0.0]),
        n_examples=np.array([20, 3, 20, 20]),
        rank=np.zeros(4, dtype=np.int64),
        probability=np.zeros(4),
        lens=np.array([[0, 1]] * 4),
        peaks=np.array([[1, -1]] * 4),
        vocabulary=("<b>bold</b>", "she"),
        facts={},
    )


def test_every_row_is_a_point_and_poles_differ_in_colour_and_shape():
    points: Any = score_figure(scores(), LIGHT).data[0]
    assert list(points.y) == [0.9, 0.1, -0.2, 0.0]
    assert [points.x[i] for i in (0, 2, 3)] == [0.5, 0.0, 1.0]
    assert points.x[1] < 0
    assert list(points.marker.symbol) == ["circle", "circle", "diamond", "diamond"]
    assert list(points.marker.color) == [LIGHT.positive] * 2 + [LIGHT.negative] * 2
    assert list(points.customdata) == [0, 1, 0, 1]


def test_hovering_tells_what_a_latent_promises_and_fires_on_as_text():
    points: Any = scores().figure().data[0]
    assert "&lt;b&gt;bold&lt;/b&gt;" in points.text[0]
    assert "<b>" not in points.text[0]
    assert "fires on she<" in points.text[0]
    assert "negative pole" in points.text[2]


def test_success_is_shown_beyond_the_plain_model_s_with_means_of_fifths():
    latents = [LatentSuccess(i, 1, None, i / 10, 2.0, float(i), 0.5, 3.0) for i in range(10)]
    drawn: Any = Success(latents, filter_table(latents), []).figure().data
    points, means = drawn
    assert list(points.y) == [i - 0.5 for i in range(10)]
    assert list(points.customdata) == list(range(10))
    assert list(means.y) == [0.0, 2.0, 4.0, 6.0, 8.0]
    # Two values a part, one apart: standard deviation 0.5.
    assert means.error_y.array[0] == 1.96 * 0.5 / 2**0.5


def test_a_few_latents_have_a_figure_too():
    latents = [LatentSuccess(0, 1, None, 0.1, 2.0, 1.0, 0.5, 3.0)]
    drawn: Any = Success(latents, filter_table(latents), []).figure().data
    assert len(drawn[1].y) == 1
