"""The state dicts of dictionary_learning mean what each of its classes computes."""

import numpy as np
import pytest
import torch
from sae.interop.cases import (
    D_IN,
    D_SAE,
    PLAIN,
    ROWS,
    Payload,
    above,
    assert_means,
    doubles,
    first,
    pick,
    pre_activations,
    reconstruction,
    refusal,
    weights,
    write_json,
)

from saelab.sae.interop.dictionary_learning import read_dictionary_learning


def linear(tensors, **more):
    """As nn.Linear stores it: transposed."""
    return {
        "encoder.weight": tensors["W_enc"].T.contiguous(),
        "encoder.bias": tensors["b_enc"],
        "decoder.weight": tensors["W_dec"].T.contiguous(),
        **more,
    }


def directory(path, kind, tensors, **trainer):
    path.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, path / "ae.pt")
    base = {
        "dict_class": kind,
        "trainer_class": "AnyTrainer",
        "activation_dim": D_IN,
        "dict_size": D_SAE,
        "layer": 3,
        "lm_name": "EleutherAI/pythia-70m-deduped",
        "submodule_name": "resid_post_layer_3",
    }
    write_json(path / "config.json", {"trainer": base | trainer, "buffer": {"ctx_len": 128}})
    return path


def buffers(k, threshold):
    return {"k": torch.tensor(k, dtype=torch.int), "threshold": torch.tensor(threshold)}


def test_auto_encoder_subtracts_its_bias_and_its_loader_makes_atoms_unit(tmp_path):
    tensors = weights()
    path = directory(tmp_path, "AutoEncoder", linear(tensors, bias=tensors["b_dec"]))
    (W_dec,) = doubles(tensors["W_dec"])
    norms = np.linalg.norm(W_dec, axis=1)
    plain = above(pre_activations(tensors, centred=True), 0)
    sae = read_dictionary_learning(path)
    assert_means(sae, plain * norms, reconstruction(plain, tensors))
    assert (sae.model, sae.hook) == ("EleutherAI/pythia-70m-deduped", "blocks.3.hook_resid_post")


def test_auto_encoder_new_subtracts_nothing(tmp_path):
    tensors = weights()
    stored = linear(tensors, **{"decoder.bias": tensors["b_dec"]})
    codes = above(pre_activations(tensors, centred=False), 0)
    sae = read_dictionary_learning(directory(tmp_path, "AutoEncoderNew", stored))
    assert_means(sae, codes, reconstruction(codes, tensors))


@pytest.mark.parametrize("stored_k", [True, False])
def test_top_k_ignores_the_threshold_it_keeps(stored_k, tmp_path):
    tensors = weights()
    more = buffers(3, 1.5) if stored_k else {}
    stored = linear(tensors, b_dec=tensors["b_dec"], **more)
    codes = first(pre_activations(tensors, centred=True), 3)
    sae = read_dictionary_learning(directory(tmp_path, "AutoEncoderTopK", stored, k=3))
    assert_means(sae, codes, reconstruction(codes, tensors))


def test_batch_top_k_fires_above_its_threshold(tmp_path):
    tensors = weights()
    stored = linear(tensors, b_dec=tensors["b_dec"], **buffers(3, 1.5))
    codes = above(pre_activations(tensors, centred=True), 1.5)
    sae = read_dictionary_learning(directory(tmp_path, "BatchTopKSAE", stored, k=3))
    assert_means(sae, codes, reconstruction(codes, tensors))
    assert (sae.k, sae.batch_k, sae.prefixes) == (None, 3, None)


@pytest.mark.parametrize("threshold", [-1.0, None])
def test_batch_top_k_whose_threshold_was_never_set_is_read_as_top_k(threshold, tmp_path):
    tensors = weights()
    more = {"k": torch.tensor(3)} if threshold is None else buffers(3, threshold)
    stored = linear(tensors, b_dec=tensors["b_dec"], **more)
    codes = first(pre_activations(tensors, centred=True), 3)
    sae = read_dictionary_learning(directory(tmp_path, "BatchTopKSAE", stored))
    assert_means(sae, codes, reconstruction(codes, tensors))
    assert "threshold never set" in sae.source


def matryoshka(tensors, sizes=(2, 3, 5), **more):
    plain = {name: tensors[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
    return {**plain, "group_sizes": torch.tensor(sizes), **buffers(3, 1.5), **more}


def test_matryoshka_groups_become_prefixes(tmp_path):
    tensors = weights()
    path = directory(tmp_path, "MatryoshkaBatchTopKSAE", matryoshka(tensors), k=3)
    codes = above(pre_activations(tensors, centred=True), 1.5)
    sae = read_dictionary_learning(path)
    assert_means(sae, codes, reconstruction(codes, tensors))
    assert (sae.prefixes, sae.batch_k) == ((2, 5, 10), 3)


def test_jumprelu_subtracts_nothing(tmp_path):
    tensors = weights()
    path = directory(tmp_path, "JumpReluAutoEncoder", tensors)
    threshold = tensors["threshold"].double().numpy()
    codes = above(pre_activations(tensors, centred=False), threshold)
    assert_means(read_dictionary_learning(path), codes, reconstruction(codes, tensors))


def test_gated_multiplies_gate_and_magnitude(tmp_path):
    tensors = weights()
    extra = dict(
        zip(
            ("r_mag", "gate_bias", "mag_bias"),
            torch.randn(3, D_SAE, generator=torch.Generator().manual_seed(5)),
            strict=True,
        )
    )
    stored = linear(tensors, decoder_bias=tensors["b_dec"], **extra)
    del stored["encoder.bias"]
    x, W, b_dec, r, gate, mag = doubles(ROWS, tensors["W_enc"], tensors["b_dec"], *extra.values())
    u = (x - b_dec) @ W
    codes = np.where(u + gate > 0, np.maximum(np.exp(r) * u + mag, 0), 0.0)
    sae = read_dictionary_learning(directory(tmp_path, "GatedAutoEncoder", stored))
    assert_means(sae, codes, reconstruction(codes, tensors))


def test_a_checkpoint_uses_the_configuration_above_it(tmp_path):
    directory(tmp_path, "JumpReluAutoEncoder", weights())
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "ae.pt").rename(tmp_path / "checkpoints" / "ae_500.pt")
    sae = read_dictionary_learning(tmp_path / "checkpoints" / "ae_500.pt")
    assert torch.equal(sae.W_dec, weights()["W_dec"])


def test_half_precision_becomes_float32(tmp_path):
    stored = {name: tensor.bfloat16() for name, tensor in weights().items()}
    sae = read_dictionary_learning(directory(tmp_path, "JumpReluAutoEncoder", stored))
    assert torch.equal(sae.W_enc, stored["W_enc"].float())


@pytest.mark.parametrize("name", ["mlp_out_layer_3", "resid_post_layer_x", None])
def test_other_names_of_submodules_tell_no_hook(name, tmp_path):
    path = directory(tmp_path, "JumpReluAutoEncoder", weights(), submodule_name=name)
    assert read_dictionary_learning(path).hook is None


@pytest.mark.parametrize(
    ("trainer", "words"),
    [
        ({"dict_class": "CrossCoder"}, "trainer.dict_class is 'CrossCoder'"),
        ({"dict_class": None}, "trainer.dict_class is 'missing'"),
        ({"dict_class": 3}, "dict_class is 3"),
        ({"dict_class": "AutoEncoder"}, "lacks bias"),
        ({"k": 4}, "k is 4, but the state dict has (3,)"),
        ({"k": "3"}, "k is '3'"),
        ({"activation_dim": 7}, "activation_dim is 7, but the encoder has 6"),
        ({"dict_size": 10**13}, "dict_size is 10000000000000"),
        ({"lm_name": "../../x"}, "no name of a language model"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(trainer, words, tmp_path):
    tensors = weights()
    stored = linear(tensors, b_dec=tensors["b_dec"], **buffers(3, 1.5))
    directory(tmp_path, "BatchTopKSAE", stored, **trainer)
    assert words in refusal(lambda: read_dictionary_learning(tmp_path))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder.bias": torch.zeros(3)}, "b_enc has shape [3]"),
        ({"encoder.weight": torch.zeros(10)}, "2 axes"),
        ({"extra": torch.zeros(1)}, "holds 'extra'"),
        ({"k": torch.tensor(3.0)}, "whole numbers"),
        ({"k": torch.tensor([3, 3])}, "the state dict has (3, 3)"),
        ({"k": torch.tensor(-3)}, "a mean k of -3"),
        ({"k": torch.tensor(10**15)}, "a mean k of 1e+15"),
        ({"threshold": torch.zeros(10)}, "one number"),
        ({"threshold": torch.tensor(torch.inf)}, "threshold holds NaN or infinite"),
        ({"threshold": torch.tensor(torch.nan)}, "threshold holds NaN or infinite"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused(changes, words, tmp_path):
    tensors = weights()
    stored = linear(tensors, b_dec=tensors["b_dec"], **buffers(3, 1.5)) | changes
    directory(tmp_path, "BatchTopKSAE", stored)
    assert words in refusal(lambda: read_dictionary_learning(tmp_path))


@pytest.mark.parametrize("sizes", [(2, 3, 4), (2, 0, 8), (-2, 12), ()])
def test_groups_that_do_not_add_up_are_refused(sizes, tmp_path):
    stored = matryoshka(weights(), group_sizes=torch.tensor(sizes, dtype=torch.int64))
    directory(tmp_path, "MatryoshkaBatchTopKSAE", stored)
    assert "do not increase to d_sae=10" in refusal(lambda: read_dictionary_learning(tmp_path))


def test_no_k_anywhere_is_refused(tmp_path):
    tensors = weights()
    directory(tmp_path, "AutoEncoderTopK", linear(tensors, b_dec=tensors["b_dec"]))
    assert "has no trainer.k" in refusal(lambda: read_dictionary_learning(tmp_path))


def test_missing_files_are_named(tmp_path):
    directory(tmp_path, "AutoEncoder", {})
    (tmp_path / "ae.pt").unlink()
    assert "ae.pt does not exist" in refusal(lambda: read_dictionary_learning(tmp_path))


def test_a_state_dict_with_code_in_it_is_refused_and_not_run(tmp_path):
    stored = weights() | {"extra": Payload(tmp_path / "marker")}
    directory(tmp_path, "JumpReluAutoEncoder", stored)
    text = refusal(lambda: read_dictionary_learning(tmp_path))
    assert "asks for posix.mkdir" in text
    assert not (tmp_path / "marker").exists()


def alone(path, tensors):
    """ae.pt without config.json, as the first releases were."""
    path.mkdir()
    torch.save(tensors, path / "ae.pt")
    return path


@pytest.mark.parametrize(
    ("kind", "stored"),
    [
        ("AutoEncoder", lambda t: linear(t, bias=t["b_dec"])),
        ("AutoEncoderNew", lambda t: linear(t, **{"decoder.bias": t["b_dec"]})),
        ("AutoEncoderTopK", lambda t: linear(t, b_dec=t["b_dec"], k=torch.tensor(3))),
        ("AutoEncoderTopK", lambda t: linear(t, b_dec=t["b_dec"], **buffers(3, -1.0))),
        ("MatryoshkaBatchTopKSAE", lambda t: matryoshka(t) | buffers(3, 0.5)),
        ("JumpReluAutoEncoder", lambda t: pick(t, *PLAIN, "threshold")),
    ],
)
def test_tensors_tell_the_class_where_no_config_does(kind, stored, tmp_path):
    tensors = stored(weights())
    told = read_dictionary_learning(directory(tmp_path / "told", kind, tensors))
    untold = read_dictionary_learning(alone(tmp_path / "alone", tensors))
    assert untold.source == told.source
    assert torch.equal(untold.reconstruct(ROWS), told.reconstruct(ROWS))


def test_tensors_of_two_classes_are_not_guessed_at(tmp_path):
    tensors = weights()
    path = alone(tmp_path / "alone", linear(tensors, b_dec=tensors["b_dec"], **buffers(3, 0.5)))
    message = refusal(lambda: read_dictionary_learning(path))
    assert "AutoEncoderTopK or BatchTopKSAE" in message
    assert "config.json" in message


def test_tensors_of_no_class_are_named(tmp_path):
    path = alone(tmp_path / "alone", {"W": torch.ones(2, 2)})
    said = refusal(lambda: read_dictionary_learning(path))
    assert "holds W, which no class of dictionary_learning saves" in said
