from typing import Any

from saelab.figures.training import training_figure


def test_training_shows_fvu_and_dead_latents_over_tokens():
    metrics = [
        {"tokens": 100, "fvu": 0.5, "dead": 3},
        {"tokens": 200, "fvu": 0.1, "dead": 1},
    ]
    traces: Any = training_figure(metrics).data
    fvu, dead = traces
    assert (list(fvu.x), list(fvu.y)) == ([100, 200], [0.5, 0.1])
    assert (list(dead.x), list(dead.y)) == ([100, 200], [3, 1])
