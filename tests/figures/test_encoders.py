from typing import Any

from saelab.drawing import figure as draw
from saelab.evaluation.encoder_curves import EncoderCurves, Point
from saelab.figures.style import LIGHT


def test_every_encoder_has_a_curve_and_the_sae_a_star():
    curves = {name: [Point(2.0, 0.4), Point(4.0, 0.2)] for name in ("omp", "mp", "lasso", "cel0")}
    figure = draw(EncoderCurves(Point(4.0, 0.3), curves, 10), palette=LIGHT)
    traces: Any = figure.data
    *lines, own = traces
    assert [line.name for line in lines] == list(curves)
    assert all(list(line.x) == [2.0, 4.0] and list(line.y) == [0.4, 0.2] for line in lines)
    looks = {(line.line.color, line.line.dash) for line in lines}
    assert len(looks) == 4
    assert (own.name, list(own.x), own.marker.symbol) == ("the SAE's own encoder", [4.0], "star")
    layout: Any = figure.layout
    assert layout.xaxis.type == layout.yaxis.type == "log"
