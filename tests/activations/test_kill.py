import random
import time

import pytest
from activations import forked
from activations.store_cases import (
    content_of,
    files_of,
    harvest_small_units,
    make_manifest,
    write_store,
)

from saelab.activations.store import ActivationStore
from saelab.activations.verify import verify

MANIFEST = make_manifest(n_contexts=60)
KILLS = 12
KILLS_OF_HARVEST = 8


@pytest.fixture(scope="module")
def processes():
    return forked.processes()


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


@pytest.mark.slow
def test_a_model_harvested_through_many_kills_gives_the_uninterrupted_store(
    checkpoint, text_file, tmp_path, processes
):
    def start(out):
        process = processes.Process(target=harvest_small_units, args=(checkpoint, text_file, out))
        process.start()
        return process

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    start(whole).join()
    moments = random.Random(1)
    interrupted = 0
    for _ in range(KILLS_OF_HARVEST):
        before = len(list(killed.glob("tokens/[0-9]*.h5")))
        process = start(killed)
        # Killed shortly after it has begun to commit: early kills would only hit the loading.
        while process.is_alive() and len(list(killed.glob("tokens/[0-9]*.h5"))) <= before:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.02))
        interrupted += process.is_alive()
        process.kill()
        process.join()
    assert interrupted > KILLS_OF_HARVEST / 4
    last = start(killed)
    last.join()
    assert last.exitcode == 0
    assert verify(killed) == []
    assert content_of(killed) == content_of(whole)
