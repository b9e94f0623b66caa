import multiprocessing
import random
import time

import pytest
from activations.store_cases import files_of, make_manifest, write_store

from saelab.activations.store import ActivationStore
from saelab.activations.verify import verify

MANIFEST = make_manifest(n_contexts=60)
KILLS = 12


@pytest.fixture(scope="module")
def processes():
    """Processes that start in milliseconds: forked from one that has imported the writer."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["saelab.activations.writer", "activations.store_cases"])
    warm = context.Process(target=time.sleep, args=(0,))
    warm.start()
    warm.join()
    return context


@pytest.mark.slow
def test_a_harvest_killed_again_and_again_ends_as_an_uninterrupted_one(tmp_path, processes):
    path = tmp_path / "killed"
    moments = random.Random(0)
    interrupted = 0
    for _ in range(KILLS):
        process = processes.Process(
            target=write_store, args=(path, MANIFEST), kwargs={"pause": 0.02}
        )
        process.start()
        process.join(moments.uniform(0.02, 0.3))
        interrupted += process.is_alive()
        process.kill()
        process.join()
        if (path / "manifest.json").exists():
            store = ActivationStore(path)
            assert all(len(store.tokens(unit).token) == 20 for unit in store.units)
    write_store(path, MANIFEST)
    assert interrupted > 0
    assert verify(path) == []
    assert files_of(path) == files_of(write_store(tmp_path / "whole", MANIFEST))
