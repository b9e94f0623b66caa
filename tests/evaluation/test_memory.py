"""A large vocabulary costs time, not memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROBE = Path(__file__).with_name("memory_probe.py")


@pytest.mark.exhaustive
def test_predictions_over_80000_words_take_a_few_hundred_megabytes(tmp_path):
    """Measured: 389 MB more, by pieces of 64 MiB; a single copy of all logits is 655 MB more."""
    paths = os.pathsep.join(map(str, (PROBE.parents[2], os.environ.get("PYTHONPATH", ""))))
    done = subprocess.run(
        [sys.executable, str(PROBE), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    (_, before, _), *uses = json.loads(done.stdout)
    assert [name for name, _, _ in uses] == [
        "downstream", "end_to_end", "gradients", "uniformity", "ablation",
    ]  # fmt: skip
    for name, peak, value in uses:
        assert peak - before < 550, name
        assert value
