"""Any known layout is recognised by what is in it, and anything else is told what is known."""

import contextlib
import zipfile
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from fuzz.mutations import damage
from sae.interop.cases import D_SAE, PLAIN, pick, refusal, weights, write_json
from sae.interop.formats import FORMATS, page
from sae.interop.test_gemma_scope_layers import released
from safetensors.torch import save_file

from saelab.cli.export import ExportArguments
from saelab.config import UsageError
from saelab.sae.interop.circuit_tracer_clt import from_foreign_clt
from saelab.sae.interop.convert import from_foreign
from saelab.sae.interop.detect import read_foreign
from saelab.sae.interop.gemma_scope_layers import read_params_of_layers


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


def make_qwen_scope(path):
    folder = path / "SAE-Res-X-W1K-L0_3"
    folder.mkdir()
    wide = {"W_enc": torch.ones(1024, 6), "W_dec": torch.ones(6, 1024)}
    torch.save(wide | {"b_enc": torch.zeros(1024), "b_dec": weights()["b_dec"]}, folder / "l.pt")


def make_llama_scope(path, settings="hyperparams.json", file="checkpoints/final.safetensors"):
    tensors = weights()
    stored = {
        "encoder.weight": tensors["W_enc"].T.contiguous(),
        "decoder.weight": tensors["W_dec"].T.contiguous(),
        "encoder.bias": tensors["b_enc"],
        "decoder.bias": tensors["b_dec"],
    }
    (path / file).parent.mkdir(exist_ok=True)
    save_file(stored, path / file)
    write_json(path / settings, {"norm_activation": "inference", "act_fn": "relu"})


def make_llama_scope_r1(path):
    make_llama_scope(path, "config.json", "sae_weights.safetensors")


def make_openai(path):
    tensors, shown = weights(), {"W_enc": "encoder.weight", "W_dec": "decoder.weight"}
    stored = {new: tensors[old].T.contiguous() for old, new in shown.items()}
    biases = {"pre_bias": tensors["b_dec"], "latent_bias": tensors["b_enc"]}
    torch.save(stored | biases, path / "8.pt")


def make_goodfire(path):
    tensors, stored = weights(), {}
    for side, matrix, bias in (("encoder", "W_enc", "b_enc"), ("decoder", "W_dec", "b_dec")):
        stored[f"{side}_linear.weight"] = tensors[matrix].T.contiguous()
        stored[f"{side}_linear.bias"] = tensors[bias]
    torch.save(stored, path / "8.pt")


def make_kissane(path):
    torch.save(pick(weights(), *PLAIN), path / "8.pt")


def make_circuit_tracer(path):
    tensors = pick(weights(), *PLAIN)
    stored = tensors | {"W_enc": tensors["W_enc"].T.contiguous()}
    save_file(stored, path / "layer_0.safetensors")


EVERY = {
    "SAELens": make_sae_lens,
    "Gemma Scope": make_gemma_scope,
    "Gemma Scope 2": make_gemma_scope_2,
    "Qwen-Scope": make_qwen_scope,
    "Llama Scope": make_llama_scope,
    "Llama Scope R1": make_llama_scope_r1,
    "OpenAI": make_openai,
    "Goodfire": make_goodfire,
    "Kissane et al.": make_kissane,
    "dictionary_learning": make_dictionary_learning,
    "sparsify": make_sparsify,
    "circuit-tracer": make_circuit_tracer,
}


@pytest.mark.parametrize("known", FORMATS, ids=lambda known: known.name)
def test_every_layout_of_the_documentation_is_recognised(known, tmp_path):
    EVERY[known.name](tmp_path)
    held = [path for path in tmp_path.rglob("*") if path.suffix in (".pt", ".safetensors")]
    single = known.files.startswith(("a ", "`layer")) or known.name == "circuit-tracer"
    sae = read_foreign(held[0] if single else tmp_path)
    assert sae.source.startswith(known.source)
    assert torch.equal(sae.b_dec, weights()["b_dec"])


def read_as_an_sae(path):
    return from_foreign(read_foreign(path))


def read_as_layers(path):
    return from_foreign_clt(read_params_of_layers(path if path.is_dir() else path.parent))


LAYERS = "Gemma Scope 2 layers"


@pytest.mark.parametrize(
    "seeds", [range(4), pytest.param(range(4, 60), marks=pytest.mark.exhaustive)]
)
@pytest.mark.parametrize("name", [*EVERY, LAYERS])
def test_a_damaged_file_is_read_or_refused_with_a_sentence(name, seeds, tmp_path):
    for seed in seeds:
        here = tmp_path / str(seed) / "here"
        work = here / "work"
        work.mkdir(parents=True)
        (here / "other.json").write_text("{}")
        (here / "other.safetensors").write_bytes(b"x")
        made = partial(released, crosscoder=bool(seed % 2)) if name == LAYERS else EVERY[name]
        read = read_as_layers if name == LAYERS else read_as_an_sae
        made(work)
        files = sorted(path for path in work.rglob("*") if path.is_file())
        file = files[seed % len(files)]
        damage(file, f"{name} {seed}")
        with contextlib.suppress(UsageError):
            read(work if file.suffix == ".json" else file)


def test_the_documentation_has_the_table_of_layouts():
    writers = get_args(ExportArguments.model_fields["to"].annotation)
    # Neuronpedia gets evidence, no SAE.
    assert {known.write for known in FORMATS} - {""} == set(writers) - {"neuronpedia"}
    file = Path(__file__).parents[3] / "docs" / "formats.md"
    assert file.read_text() == page(), page()


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
