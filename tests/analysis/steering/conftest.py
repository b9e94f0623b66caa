"""A model whose biases and norms are not at their defaults, which would hide errors."""

import shutil

import pytest
from analysis.steering.cases import perturbed, save_checkpoint


@pytest.fixture(scope="session")
def perturbed_lm(tmp_path_factory):
    """Two random layers with perturbed biases and gains, on a word tokenizer."""
    from saelab.lm.load import load_language_model

    directory = save_checkpoint(tmp_path_factory.mktemp("perturbed"), perturbed)
    return load_language_model(directory, device="cpu")


@pytest.fixture(scope="session")
def featured_run(small_run, random_lm, tmp_path_factory):
    """A copy of the trained run, with features.h5."""
    from saelab.analysis.features import FeatureOptions, collect_features
    from saelab.training.run import Run

    copy = tmp_path_factory.mktemp("featured") / "run"
    run = Run(shutil.copytree(small_run.path, copy))
    collect_features(run, random_lm, FeatureOptions(n_tokens=300, n_examples=12, reach=3))
    return run
