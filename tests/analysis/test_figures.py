from dataclasses import replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from saelab.analysis.figures import (
    DARK,
    LIGHT,
    Palette,
    activation_histogram,
    latent_figure,
    logit_effects_figure,
    recovery_figure,
    training_figure,
)
from saelab.analysis.records import LatentRecord


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
    bars = traces(activation_histogram(record))[0]
    assert dict(zip(bars.x, bars.y, strict=True)) == {-1.5: 2, -0.5: 1, 1.5: 5}


def test_the_two_signs_have_the_two_colours(record: LatentRecord):
    bars = traces(activation_histogram(record, LIGHT))[0]
    assert list(bars.marker.color) == [LIGHT.negative, LIGHT.negative, LIGHT.positive]


def test_effects_run_from_the_most_raised_to_the_most_lowered(record: LatentRecord):
    figure = logit_effects_figure(record)
    assert list(traces(figure)[0].x) == [4.0, 3.0, -2.0, -4.0]
    assert list(layout(figure).yaxis.ticktext) == ["her", "&lt;script&gt;", "\\n", "him"]


def test_a_site_without_a_direct_path_has_an_empty_figure(record: LatentRecord):
    empty = logit_effects_figure(replace(record, raised=[], lowered=[]))
    assert not traces(empty)[0].x


def test_a_record_draws_itself(record: LatentRecord):
    figure = record.figure()
    assert [len(trace.x) for trace in traces(figure)] == [3, 4]
    assert "latent 7" in layout(figure).title.text


@pytest.mark.parametrize("palette", [LIGHT, DARK])
def test_figures_leave_the_background_to_the_page(record: LatentRecord, palette: Palette):
    look = layout(latent_figure(record, palette))
    assert look.paper_bgcolor == look.plot_bgcolor == "rgba(0,0,0,0)"


def test_training_shows_fvu_and_dead_latents_over_tokens():
    metrics = [
        {"tokens": 100, "fvu": 0.5, "dead": 3},
        {"tokens": 200, "fvu": 0.1, "dead": 1},
    ]
    fvu, dead = traces(training_figure(metrics))
    assert (list(fvu.x), list(fvu.y)) == ([100, 200], [0.5, 0.1])
    assert (list(dead.x), list(dead.y)) == ([100, 200], [3, 1])


def test_recovery_sets_the_probe_against_the_best_latent():
    scores = {"f1": 0.5, "probe_f1": 0.8, "probe_auroc": 0.9}
    feature = {"label": "name_female", "latent": 4, "sign": -1, **scores}
    points = traces(recovery_figure([feature]))[0]
    assert (list(points.x), list(points.y)) == ([0.8], [0.5])
    assert "name female" in points.text[0]
    assert points.marker.symbol == ("diamond",)


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast ratio of two #rrggbb colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("palette", "page"), [(LIGHT, "#ffffff"), (DARK, "#1a1d20")])
def test_text_has_the_contrast_that_wcag_asks_for(palette: Palette, page: str):
    assert contrast(palette.ink, page) > 4.5
    assert contrast(palette.mute, page) > 4.5
    # Marks need 3:1.
    assert contrast(palette.positive, page) > 3
    assert contrast(palette.negative, page) > 3
