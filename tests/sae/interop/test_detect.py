"""Any known layout is recognised by what is in it, and anything else is told what is known."""

import zipfile
from typing import Any

import numpy as np
import pytest
import torch
from sae.interop.cases import D_SAE, PLAIN, pick, refusal, weights, write_json
from safetensors.torch import save_file

from saelab.sae.interop.detect import read_foreign


def make_sae_lens(path):
    save_file(pick(weights(), *PLAIN), path / "sae_weights.safetensors")
    write_json(path / "cfg.json", {"architecture": "standard"})


def make_sparsify(path):
    tensors = weights()
    stored = {
        "encoder.weight": tensors["W_enc"].T.contiguous(),
        "encoder.bias": tensors["b_enc"],
        "W_dec": tensors["W_dec"],
        "b_dec": tensors["b_dec"],
    }
    save_file(stored, path / "sae.safetensors")
    write_json(path / "cfg.json", {"k": 3, "num_latents": D_SAE})


def make_dictionary_learning(path):
    torch.save(weights(), path / "ae.pt")
    write_json(path / "config.json", {"trainer": {"dict_class": "JumpReluAutoEncoder"}})


def make_gemma_scope(path):
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in weights().items()}
    np.savez(path / "params.npz", **arrays)


def make_gemma_scope_2(path):
    lowered = {name.replace("W_", "w_"): tensor for name, tensor in weights().items()}
    save_file(lowered, path / "params.safetensors")


LAYOUTS = [
    (make_sae_lens, "sae_weights.safetensors", "SAELens standard"),
    (make_sparsify, "sae.safetensors", "sparsify topk"),
    (make_dictionary_learning, "ae.pt", "dictionary_learning JumpReluAutoEncoder"),
    (make_gemma_scope, "params.npz", "Gemma Scope jumprelu"),
    (make_gemma_scope_2, "params.safetensors", "Gemma Scope jumprelu"),
]


@pytest.mark.parametrize(("make", "file", "source"), LAYOUTS)
def test_a_directory_and_its_weights_file_are_recognised(make, file, source, tmp_path):
    make(tmp_path)
    for path in (tmp_path, tmp_path / file):
        sae = read_foreign(path)
        assert sae.source == source
        assert torch.equal(sae.b_dec, weights()["b_dec"])


@pytest.mark.parametrize("make", [make_sae_lens, make_sparsify])
def test_a_configuration_file_stands_for_its_directory(make, tmp_path):
    make(tmp_path)
    assert torch.equal(read_foreign(tmp_path / "cfg.json").W_dec, weights()["W_dec"])


def test_archives_are_recognised_under_other_names(tmp_path):
    make_gemma_scope(tmp_path)
    (tmp_path / "params.npz").rename(tmp_path / "layer20.bin")
    assert read_foreign(tmp_path / "layer20.bin").source == "Gemma Scope jumprelu"
    make_dictionary_learning(tmp_path)
    (tmp_path / "ae.pt").rename(tmp_path / "ae_500.weights")
    assert read_foreign(tmp_path / "ae_500.weights").source.startswith("dictionary_learning")


def assert_lists_what_is_known(text):
    for tool in ("SAELens", "sparsify", "dictionary_learning", "Gemma Scope", "params.npz"):
        assert tool in text


def test_anything_else_is_told_what_is_known(tmp_path):
    assert_lists_what_is_known(refusal(lambda: read_foreign(tmp_path)))
    write_json(tmp_path / "cfg.json", {})
    assert_lists_what_is_known(refusal(lambda: read_foreign(tmp_path / "cfg.json")))
    save_file({"x": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert_lists_what_is_known(refusal(lambda: read_foreign(tmp_path / "model.safetensors")))
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr("readme.txt", "x")
    assert_lists_what_is_known(refusal(lambda: read_foreign(tmp_path / "some.zip")))
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    assert_lists_what_is_known(refusal(lambda: read_foreign(tmp_path / "empty.zip")))


def test_a_damaged_archive_is_refused(tmp_path):
    make_gemma_scope(tmp_path)
    path = tmp_path / "params.npz"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"PK\x01\x02", b"PK\x01\x03"))
    assert "is a damaged archive" in refusal(lambda: read_foreign(path))


def test_two_saes_in_one_directory_are_refused(tmp_path):
    make_sae_lens(tmp_path)
    make_gemma_scope(tmp_path)
    assert "several SAEs (sae_weights.safetensors, params.npz)" in refusal(
        lambda: read_foreign(tmp_path)
    )


def test_a_missing_path_is_named(tmp_path):
    assert "gone does not exist" in refusal(lambda: read_foreign(tmp_path / "gone"))
