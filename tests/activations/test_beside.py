"""A store that is read while it is written, by other processes than the writer."""

import os
import subprocess
import sys
import time

import pytest
from activations.store_cases import content_of, harvest_process

from saelab.activations.store import ActivationStore
from saelab.activations.verify import verify

READER = """
import sys, time
from saelab.activations.batches import ShuffledBatches
from saelab.activations.store import ActivationStore

path, seen = sys.argv[1], set()
print("ready", flush=True)
while True:
    store = ActivationStore(path)
    if store.units:
        batches = ShuffledBatches(store, store.sites[0], min(100, store.n_rows), seed=1)
        for _ in range(3):
            assert next(batches).x.isfinite().all()
        assert all(len(store.tokens(u).token) == n for u, n in zip(store.units, store.unit_rows))
        seen.add(len(store.units))
    if store.complete:
        break
    time.sleep(0.01)
print(sorted(seen))
"""


def reader(path):
    return subprocess.Popen(
        [sys.executable, "-c", READER, str(path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.exhaustive
def test_three_readers_read_whole_units_of_a_store_that_is_still_written(
    alone, checkpoint, long_text, tmp_path
):
    out = tmp_path / "s"
    writer = harvest_process(checkpoint, long_text, out, {})
    while not (out / "manifest.json").exists():
        assert writer.poll() is None
        time.sleep(0.01)
    readers = [reader(out) for _ in range(3)]
    _, errors = writer.communicate()
    assert writer.returncode == 0, errors
    for process in readers:
        printed, errors = process.communicate()
        assert process.returncode == 0, errors
        assert printed.startswith("ready")
        assert "2" in printed.splitlines()[-1]
    assert content_of(out) == content_of(alone)


@pytest.mark.slow
def test_a_launch_of_another_size_continues_what_one_has_begun(
    alone, checkpoint, long_text, tmp_path
):
    """Rank 1 of 2 ran alone and wrote its unit; a single process then does the rest."""
    out = tmp_path / "s"
    first = harvest_process(checkpoint, long_text, out, {"RANK": "1", "WORLD_SIZE": "2"})
    _, errors = first.communicate()
    assert first.returncode == 0, errors
    assert ActivationStore(out).units == (1,)
    second = harvest_process(checkpoint, long_text, out, {})
    _, errors = second.communicate()
    assert second.returncode == 0, errors
    assert verify(out) == []
    assert content_of(out) == content_of(alone)
