"""Memory is bounded by the budget of nodes, and what the budget left out is counted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROBE = Path(__file__).with_name("memory_probe.py")


@pytest.mark.exhaustive
def test_ten_times_the_active_latents_take_little_more_memory(tmp_path):
    """Measured: 106 MB more for 148,800 instead of 14,880 active latents and 200 in the graph.

    A walk's workspace is 64 MB of it, whatever is active; the inputs alone would be 240 MB.
    """
    paths = os.pathsep.join(map(str, (PROBE.parents[2], os.environ.get("PYTHONPATH", ""))))
    done = subprocess.run(
        [sys.executable, str(PROBE), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    few, many = found["counts"]
    assert many["active_latents"] == 10 * few["active_latents"] == 148_800
    _, first, second = found["peaks"]
    assert second - first < 130
    for counts in (few, many):
        assert counts["latents"] == 200
        assert counts["latents_left_out"] == counts["active_latents"] - 200
        assert 0 < counts["influence_left_out"] < 1
        assert counts["pruned_nodes"] > 0
        assert 0 < counts["pruned_influence"] < 1
    assert many["influence_left_out"] > few["influence_left_out"]
