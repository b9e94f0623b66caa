"""The app's colours that mean something stay apart for the colour-blind, in both themes.

Dichromacy is simulated by the matrices of Machado et al. (2009, table 1, severity 1), on linear
RGB; differences are CIE76's in L*a*b*, of which about 2 can just be seen.
"""

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

STATIC = Path(__file__).parents[2] / "apps" / "feature_browser" / "static"
SIGHT = {
    "all colours": np.eye(3),
    "no red cones": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no green cones": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "no blue cones": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
GROUPS = [("--pos", "--neg"), ("--stream", "--heads", "--mlp")]
"""Colours that are told from each other."""
APART = 20.0


def colours(name: str) -> list[np.ndarray]:
    """The values of a colour of the style sheets in light and dark, from 0 to 1."""
    css = "".join(path.read_text() for path in sorted(STATIC.glob("canvas*.css")))
    pair = re.search(rf"{name}: light-dark\((rgb\([^)]*\)|#\w+), (rgb\([^)]*\)|#\w+)\)", css)
    assert pair, name
    return [np.array(_numbers(text)) / 255 for text in pair.groups()]


def _numbers(text: str) -> list[int]:
    if text.startswith("rgb"):
        return [int(part) for part in re.findall(r"\d+", text)]
    return [int(text[i : i + 2], 16) for i in (1, 3, 5)]


def lab(rgb: np.ndarray, sight: object) -> np.ndarray:
    """L*a*b* of an sRGB colour as somebody sees it."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.asarray(sight) @ linear, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(to_xyz) @ seen / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_that_are_told_from_each_other_stay_apart(sight: str, theme: int):
    for group in GROUPS:
        for one, other in combinations(group, 2):
            a, b = (lab(colours(name)[theme], SIGHT[sight]) for name in (one, other))
            assert np.linalg.norm(a - b) > APART, (one, other)


def test_red_and_green_of_one_brightness_would_be_found():
    red, green = np.array([0.8, 0.3, 0.2]), np.array([0.45, 0.47, 0.15])
    near = np.linalg.norm(lab(red, SIGHT["no green cones"]) - lab(green, SIGHT["no green cones"]))
    assert near < APART < np.linalg.norm(lab(red, np.eye(3)) - lab(green, np.eye(3)))
