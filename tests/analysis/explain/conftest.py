"""A run with features, whose latent i fires on token i."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from apps.conftest import feature_arrays

from saelab.analysis.feature_file import BY_LATENT, KINDS, write_features
from saelab.analysis.features import FeatureOptions, collect_features
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


@pytest.fixture(scope="session")
def wide_run(told_run, tmp_path_factory) -> Run:
    """The same evidence seven times: 224 latents, which raise tokens of their own."""
    path = shutil.copytree(told_run.path, tmp_path_factory.mktemp("wide") / "run")
    arrays = feature_arrays(tmp_path_factory.mktemp("codes"), signed=True)
    starts = [name for name in arrays if name.endswith("window_start")]
    rows = {name for name in arrays if name.split("/")[0] in {*BY_LATENT, *KINDS}} - {*starts}
    wide = {name: np.concatenate([arrays[name]] * 7) if name in rows else arrays[name]
            for name in arrays}  # fmt: skip
    for name in starts:
        ends = np.concatenate([arrays[name][1:] + i * arrays[name][-1] for i in range(7)])
        wide[name] = np.concatenate([[0], ends])
    draw = np.random.default_rng(1)
    wide["logits/top_tokens"] = draw.permuted(wide["logits/top_tokens"], axis=1)
    facts = {"n_tokens": 2880, "reach": 16, "sae_sha256": sha256_file(told_run.weights)}
    write_features(path / "features.h5", wide, facts)
    return Run(path)


@pytest.fixture(scope="session")
def steered_run(small_run, random_lm, tmp_path_factory) -> Run:
    """The small run with features of its own model, which it steers."""
    run = Run(shutil.copytree(small_run.path, tmp_path_factory.mktemp("does") / "topk"))
    collect_features(run, random_lm, FeatureOptions(n_tokens=300, n_examples=12, reach=3))
    return run


def contents(path: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}
