import re

import numpy as np
from feature_browser.draw.scatter import CELLS_X, CELLS_Y, Axes, Points, scatter
from hypothesis import given, settings
from hypothesis import strategies as st

AXES = Axes("x <axis>", "y", (-0.1, 1.04), (-0.3, 1.04))


def points(n: int, seed: int = 0) -> Points:
    draw = np.random.default_rng(seed)
    return Points(
        draw.uniform(0, 1, n), draw.uniform(-0.2, 1, n), draw.random(n) < 0.3, draw.random(n) < 0.6
    )


@settings(max_examples=20, deadline=None)
@given(n=st.integers(0, 300), seed=st.integers(0, 9))
def test_every_point_is_in_exactly_one_mark_and_in_its_cell(n: int, seed: int):
    drawn, seen = points(n, seed), []

    def lead(found, box):
        left, right, bottom, top = box
        assert ((left <= drawn.x[found]) & (drawn.x[found] <= right)).all()
        assert ((bottom <= drawn.y[found]) & (drawn.y[found] <= top)).all()
        assert len({(bool(drawn.negative[i]), bool(drawn.shown[i])) for i in found}) == 1
        seen.extend(found.tolist())
        return "?a=1", "tip"

    scatter(drawn, AXES, lead)
    assert sorted(seen) == list(range(n))


def test_the_number_of_marks_is_bounded_by_the_grid():
    picture = scatter(points(60_000), AXES, lambda found, box: ("?", ""))
    assert picture.count("<a ") <= 4 * CELLS_X * CELLS_Y
    assert len(picture) < 3_000_000


def test_negative_poles_differ_in_shape_and_hidden_points_stay_faint():
    two = Points(np.array([0.1, 0.9]), np.array([0.1, 0.9]), np.array([True, False]),
                 np.array([True, False]))  # fmt: skip
    picture = scatter(two, AXES, lambda found, box: ("?", ""))
    assert re.search(r'class="mark neg"[^>]*><path', picture)
    assert re.search(r'class="mark pos faint"[^>]*><circle', picture)


def test_titles_and_tooltips_are_escaped():
    picture = scatter(points(5), AXES, lambda found, box: ('?q="<', "<img onerror=x>"))
    assert "<img" not in picture
    assert "x &lt;axis&gt;" in picture
    assert 'href="?q=&quot;&lt;"' in picture
