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
