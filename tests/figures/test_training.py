from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.figures.training import MOST_POINTS, telling, training_figure


def drawn(lines: list[dict[str, Any]]) -> tuple[dict[str, Any], Any]:
    """Each curve's points by its name, and the layout."""
    figure: Any = training_figure(lines)
    return {c.name: (list(c.x), list(c.y)) for c in figure.data}, figure.layout


def test_every_logged_figure_is_a_curve_over_the_tokens_and_those_of_every_run_come_first():
    lines = [{"step": s, "tokens": 9 * s, "aux_k": s, "dead": 3, "fvu": 1 / s} for s in (1, 2)]
    curves, layout = drawn(lines)
    assert list(curves) == ["FVU", "latents silent of late", "aux k"]
    assert curves["FVU"] == ([9, 18], [1, 0.5])
    # One pointer reads them all.
    assert (layout.hovermode, layout.hoversubplots) == ("x unified", "axis")


def test_what_is_no_number_is_left_out_of_its_curve_alone():
    lines = [{"tokens": 9 * s, "fvu": y, "odd": "x", "l0": s, "lr": None}
             for s, y in enumerate([1.0, float("nan"), None, 0.5])]  # fmt: skip
    curves, _ = drawn([*lines, {"fvu": 0.1}])
    assert curves["FVU"] == ([0, 27], [1.0, 0.5])
    assert len(curves["L0, active latents per token"][0]) == 4
    assert len(curves) == 2
    assert drawn([])[0] == {}


@pytest.mark.parametrize(
    ("y", "kind"),
    [([1.0, 0.5, 0.1], "log"), ([1.0, 0.5, 0.2], None), ([0.0] * 3, None), ([-3.0, 0, 2], None)],
)
def test_an_axis_is_logarithmic_where_all_values_span_a_decade(y: list[float], kind: str | None):
    _, layout = drawn([{"tokens": s, "fvu": value} for s, value in enumerate(y)])
    assert layout.yaxis.type == kind


def test_the_ticks_of_a_few_decades_are_whole_numbers():
    _, layout = drawn([{"tokens": s, "fvu": y} for s, y in enumerate([0.3, 0.04, 0.02])])
    assert layout.yaxis.ticktext == ("0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1", "2", "5")
    assert [float(text) for text in layout.yaxis.ticktext] == list(layout.yaxis.tickvals)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 3000), at=st.floats(0, 1))
def test_a_long_curve_is_thinned_to_few_points_that_keep_its_ends_and_spikes(n: int, at: float):
    y = np.linspace(1.0, 2.0, n)
    spike = round(at * (n - 1))
    y[spike] = 9.0
    kept = telling(y)
    assert len(kept) <= MOST_POINTS + 2
    assert {0, spike, n - 1} <= set(kept.tolist())
    assert (np.diff(kept) > 0).all()
