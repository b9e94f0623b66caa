"""Scores are read without torch, and summed up by hand-checked rules."""

import subprocess
import sys

import numpy as np
import pytest

from saelab.analysis.steering.records import SteeringScores, steering_path
from saelab.analysis.steering.steering_file import write_arrays
from saelab.config import UsageError


def hand_made(output: list[float], found: list[float]) -> SteeringScores:
    n = len(output)
    ones = np.ones(n, dtype=np.int64)
    return SteeringScores(
        latent=np.arange(n),
        sign=ones,
        input=np.array(found),
        output=np.array(output),
        n_examples=ones,
        rank=ones,
        probability=np.array(output),
        lens=np.zeros((n, 2), dtype=np.int64),
        peaks=np.full((n, 2), -1),
        vocabulary=("a", "b"),
        facts={},
    )


def test_the_summary_counts_high_scores_and_how_they_go_together():
    scores = hand_made([0.5, 0.005, 0.02, 0.9], [0.6, 0.7, 0.1, float("nan")])
    summary = scores.summary()
    assert (summary["n_rows"], summary["n_with_input"]) == (4, 3)
    assert (summary["high_output"], summary["high_input"], summary["high_both"]) == (3, 2, 1)
    # One of three has both; two of three have either, so 4/9 were expected.
    assert summary["lift"] == pytest.approx(0.75)
    expected = np.corrcoef([0.6, 0.7, 0.1], [0.5, 0.005, 0.02])[0, 1]
    assert summary["correlation"] == pytest.approx(expected)


def test_the_summary_of_scores_without_inputs_has_no_correlation():
    summary = hand_made([0.5, 0.6], [float("nan")] * 2).summary()
    assert summary["n_with_input"] == 0
    assert "correlation" not in summary
    assert "lift" not in summary


def test_best_are_the_highest_outputs_first_and_a_record_is_json_ready():
    scores = hand_made([0.1, 0.9, -0.5], [float("nan"), 0.5, 0.5])
    assert scores.best(2) == [1, 0]
    assert scores.record(0)["input"] is None
    assert scores.record(1)["promises"] == ["a", "a"]
    assert scores.record(1)["fires_on"] == []
    with pytest.raises(UsageError, match="Latent 1 \\(pole -1\\) is not among the scores"):
        scores.row(1, -1)


def test_stored_scores_are_read_without_torch(tmp_path):
    scores = hand_made([0.5, 0.6], [0.1, 0.2])
    names = ("latent", "sign", "input", "output", "n_examples", "rank", "probability")
    arrays = {name: getattr(scores, name) for name in (*names, "lens", "peaks")}
    write_arrays(steering_path(tmp_path), arrays, scores.vocabulary, {})
    code = (
        "import sys\n"
        "from saelab.analysis.steering.records import load_steering_scores\n"
        f"print(load_steering_scores({str(tmp_path)!r}).best(1), 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["[1]", "False"]
