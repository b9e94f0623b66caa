import shutil

import pytest


@pytest.fixture(scope="session")
def _finished_store(tmp_path_factory):
    from activations.store_cases import make_manifest, write_store

    return write_store(tmp_path_factory.mktemp("stores") / "finished", make_manifest())


@pytest.fixture
def store_path(_finished_store, tmp_path):
    """A complete small store of one's own: 10 contexts in 3 units, 3 sites, 10 labels."""
    return shutil.copytree(_finished_store, tmp_path / "store")


@pytest.fixture(scope="session")
def long_text(tmp_path_factory):
    from conftest import TEXT

    path = tmp_path_factory.mktemp("text") / "long.txt"
    path.write_text(" ".join([TEXT] * 15))
    return path


@pytest.fixture(scope="session")
def alone(checkpoint, long_text, tmp_path_factory):
    """The store that one uninterrupted process makes."""
    from activations.store_cases import harvest_process

    from saelab.activations.store import ActivationStore

    out = tmp_path_factory.mktemp("alone") / "store"
    process = harvest_process(checkpoint, long_text, out, {})
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert len(ActivationStore(out).units) == 2
    return out
