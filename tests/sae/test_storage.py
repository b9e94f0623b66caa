"""Saved SAEs are one safetensors file, and anything else is refused with a sentence."""

import pytest
import torch
from safetensors.torch import save_file

from saelab.config import UsageError
from saelab.sae.storage import load_sae, save_sae
from saelab.sae.topk import TopKConfig


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"gone\.safetensors does not exist"):
        load_sae(tmp_path / "gone.safetensors")


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "sae.safetensors"
    save_sae(TopKConfig(d_sae=8, k=2).build(4), path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UsageError, match="not a whole safetensors file"):
        load_sae(path)


def test_a_safetensors_file_of_another_kind_is_refused(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match="not an SAE of saelab"):
        load_sae(tmp_path / "other.safetensors")


def test_weights_that_do_not_fit_the_configuration_are_refused(tmp_path):
    header = {"format": "saelab-sae/1", "d_in": "4"}
    config = TopKConfig(d_sae=8, k=2).model_dump_json()
    save_file({"W_dec": torch.zeros(2)}, tmp_path / "bad.safetensors", header | {"config": config})
    with pytest.raises(
        UsageError, match=r"W_dec has the shape \[2\], its configuration says \[8, 4\]"
    ):
        load_sae(tmp_path / "bad.safetensors")
