"""Configurations are closed, frozen and exact through JSON."""

import pytest

from saelab.config import UsageError
from saelab.formats.json_file import read_config
from saelab.training.config import TrainConfig


def config(**changes) -> TrainConfig:
    values = {
        "sae": {"variant": "topk", "d_sae": 64, "k": 4},
        "activations": "store",
        "site": "x",
        "n_tokens": 1000,
    }
    return TrainConfig.model_validate(values | changes)


def test_json_round_trip_is_the_identity(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(config().to_json())
    assert read_config(TrainConfig, path) == config()


def test_a_misspelt_option_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(config().to_json().replace('"batch_size"', '"batchsize"'))
    with pytest.raises(UsageError, match="batchsize"):
        read_config(TrainConfig, path)


def test_a_large_limit_is_told_in_groups_of_digits(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(config().to_json().replace('"d_sae": 64', f'"d_sae": {2**41}'))
    with pytest.raises(UsageError, match=r"or equal to 1,099,511,627,776\.$"):
        read_config(TrainConfig, path)


def test_the_variant_decides_the_class_of_the_sae_options():
    signed = config(sae={"variant": "abs-topk", "d_sae": 64})
    assert type(signed.sae).__name__ == "AbsTopKConfig"


def test_digests_differ_exactly_when_configurations_do():
    assert config().digest() == config().digest()
    assert config().digest() != config(seed=1).digest()


def test_the_default_rate_follows_the_inverse_root_of_the_width():
    assert config(sae={"variant": "topk", "d_sae": 2**14, "k": 4}).peak_lr == 2e-4
    assert config(sae={"variant": "topk", "d_sae": 2**12, "k": 4}).peak_lr == pytest.approx(4e-4)
