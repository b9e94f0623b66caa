from dataclasses import replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from saelab.analysis.records import LatentRecord
from saelab.figures.latent import latent_figure
from saelab.figures.style import LIGHT


def traces(figure: go.Figure) -> Any:
    """The figure's traces, whose attributes plotly declares only at run time."""
    return figure.data


def layout(figure: go.Figure) -> Any:
    return figure.layout


@pytest.fixture
def record() -> LatentRecord:
    """Four bins from -2 to 2: 3 firings below zero, none just above it, 5 from 1 to 2."""
    return LatentRecord(
        latent=7,
        n_fired=8,
        n_negative=3,
        n_tokens=100,
        max=1.9,
        mean=1.2,
        histogram=np.array([2, 1, 0, 5]),
        histogram_edges=np.array([-2.0, -1.0, 0.0, 1.0, 2.0]),
        examples={},
        raised=[("her", 4.0), ("<script>", 3.0)],
        lowered=[("him", -4.0), ("\n", -2.0)],
        neighbours=[],
    )


def test_the_histogram_shows_every_occupied_bin_at_its_centre(record: LatentRecord):
    bars = traces(latent_figure(record))[0]
    assert dict(zip(bars.x, bars.y, strict=True)) == {-1.5: 2, -0.5: 1, 1.5: 5}


def test_the_two_signs_have_the_two_colours(record: LatentRecord):
    bars, effects = traces(latent_figure(record, LIGHT))
    assert list(bars.marker.color) == [LIGHT.negative, LIGHT.negative, LIGHT.positive]
    assert list(effects.marker.color) == [LIGHT.positive] * 2 + [LIGHT.negative] * 2


def test_effects_run_from_the_most_raised_to_the_most_lowered(record: LatentRecord):
    figure = latent_figure(record)
    assert list(traces(figure)[1].x) == [4.0, 3.0, -2.0, -4.0]
    assert list(layout(figure).yaxis2.ticktext) == ["her", "&lt;script&gt;", "\\n", "him"]


def test_a_site_without_a_direct_path_has_an_empty_figure(record: LatentRecord):
    empty = latent_figure(replace(record, raised=[], lowered=[]))
    assert not traces(empty)[1].x


def test_a_record_draws_itself(record: LatentRecord):
    figure = record.figure()
    assert [len(trace.x) for trace in traces(figure)] == [3, 4]
    assert "latent 7" in layout(figure).title.text
