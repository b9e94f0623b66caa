"""A run with features, whose latent i fires on token i."""

import shutil
from pathlib import Path

import pytest
from apps.conftest import feature_arrays

from saelab.analysis.feature_file import write_features
from saelab.files import sha256_file
from saelab.training.run import Run


@pytest.fixture(scope="session")
def told_run(small_run, tmp_path_factory) -> Run:
    """The small run with features of 32 latents, of which the last never fires."""
    path = shutil.copytree(small_run.path, tmp_path_factory.mktemp("told") / "run")
    arrays = feature_arrays(tmp_path_factory.mktemp("codes"), signed=True)
    facts = {"n_tokens": 2880, "reach": 16, "sae_sha256": sha256_file(small_run.weights)}
    write_features(path / "features.h5", arrays, facts)
    return Run(path)


@pytest.fixture
def run(told_run, tmp_path) -> Run:
    """A copy of it to write into."""
    return Run(shutil.copytree(told_run.path, tmp_path / "run"))


def contents(path: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}
