"""Released `.pt` files are told apart by their tensors, and each encodes as its paper says."""

import pytest
import torch
from sae.interop.cases import (
    D_IN,
    D_SAE,
    PLAIN,
    ROWS,
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

from saelab.sae.interop.detect import read_foreign
from saelab.sae.interop.hints import Hints


def transposed(**names):
    tensors = weights()
    return {new: tensors[old].T.contiguous() for new, old in names.items()}


def qwen(path, folder="own"):
    file = path / folder / "layer3.sae.pt"
    file.parent.mkdir(parents=True)
    torch.save(transposed(W_enc="W_enc", W_dec="W_dec") | pick(weights(), "b_enc", "b_dec"), file)
    return file


def openai(path, activation="TopK", **rule):
    tensors = weights()
    stored = transposed(**{"encoder.weight": "W_enc", "decoder.weight": "W_dec"})
    stored |= {"pre_bias": tensors["b_dec"], "latent_bias": tensors["b_enc"]}
    stored["stats_last_nonzero"] = torch.zeros(D_SAE, dtype=torch.long)
    told = {"activation": activation, "activation_state_dict": rule}
    torch.save(stored | told, path / "8.pt")
    return path / "8.pt"


def test_qwen_scope_is_transposed_and_does_not_subtract_its_bias(tmp_path):
    tensors = weights()
    codes = first(pre_activations(tensors, centred=False), 4)
    sae = read_foreign(qwen(tmp_path), Hints(k=4))
    assert_means(sae, codes, reconstruction(codes, tensors))
    assert sae.hook == "blocks.3.hook_resid_post"


def test_qwen_scopes_k_stands_in_its_repositorys_name(tmp_path, monkeypatch):
    assert "give --k" in refusal(lambda: read_foreign(qwen(tmp_path)))
    folder = "models--Qwen--SAE-Res-Qwen3-1.7B-Base-W32K-L0_50/snapshots/0"
    assert "says 32K latents, but W_enc has 10" in refusal(
        lambda: read_foreign(qwen(tmp_path, folder))
    )
    wide = {"W_enc": torch.ones(1024, 2), "W_dec": torch.ones(2, 1024)}
    file = tmp_path / "SAE-Res-X-W1K-L0_50" / "layer0.sae.pt"
    file.parent.mkdir()
    torch.save(wide | {"b_enc": torch.zeros(1024), "b_dec": torch.zeros(2)}, file)
    assert (read_foreign(file).k, read_foreign(file).model) == (50, "Qwen/X")
    assert "says k=50, not 7" in refusal(lambda: read_foreign(file, Hints(k=7)))


def test_matrices_that_are_not_transposed_are_the_attention_saes_of_gpt2(tmp_path):
    tensors = weights()
    torch.save(pick(tensors, *PLAIN), tmp_path / "L0_v9.pt")
    codes = above(pre_activations(tensors, centred=True), 0)
    sae = read_foreign(tmp_path / "L0_v9.pt")
    assert_means(sae, codes, reconstruction(codes, tensors))
    assert sae.hook is None
    write_json(tmp_path / "L0_v9_cfg.json", {"act_name": "blocks.0.hook_z"})
    assert read_foreign(tmp_path / "L0_v9.pt").hook == "blocks.0.attn.hook_z"
    assert "leave out --k" in refusal(lambda: read_foreign(tmp_path / "L0_v9.pt", Hints(k=3)))


def test_as_many_latents_as_inputs_leave_the_orientation_open(tmp_path):
    square = {"W_enc": torch.eye(3), "W_dec": torch.eye(3)}
    torch.save(square | {"b_enc": torch.zeros(3), "b_dec": torch.zeros(3)}, tmp_path / "a.pt")
    assert "as many latents as inputs" in refusal(lambda: read_foreign(tmp_path / "a.pt"))


def test_goodfire_does_not_subtract_its_bias(tmp_path):
    tensors, file = weights(), tmp_path / "Llama-3.1-8B-Instruct-SAE-l19.pth"
    linear = {"encoder_linear.weight": "W_enc", "decoder_linear.weight": "W_dec"}
    biases = {"encoder_linear.bias": tensors["b_enc"], "decoder_linear.bias": tensors["b_dec"]}
    torch.save(transposed(**linear) | biases, file)
    codes = above(pre_activations(tensors, centred=False), 0)
    sae = read_foreign(file)
    assert_means(sae, codes, reconstruction(codes, tensors))
    assert sae.hook == "blocks.19.hook_resid_post"


def test_openais_topk_normalises_each_row_and_undoes_it(tmp_path):
    x, W_enc, b_enc, b_dec = doubles(ROWS, *(weights()[n] for n in ("W_enc", "b_enc", "b_dec")))
    mean, std = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
    codes = first(((x - mean) / (std + 1e-5) - b_dec) @ W_enc + b_enc, 4)
    sae = read_foreign(openai(tmp_path, k=4, postact_fn="ReLU"))
    assert_means(sae, codes, reconstruction(codes, weights()) * std + mean)


def test_openais_relu_does_not(tmp_path):
    codes = above(pre_activations(weights(), centred=True), 0)
    sae = read_foreign(openai(tmp_path, "ReLU"))
    assert_means(sae, codes, reconstruction(codes, weights()))


@pytest.mark.parametrize(
    ("activation", "rule", "words"),
    [
        ("TopK", {}, "has no activation_state_dict.k"),
        ("TopK", {"k": "4"}, "k is '4'"),
        ("TopK", {"k": 40}, "k=40 is not within 1 and d_sae=10"),
        ("TopK", {"k": 4, "postact_fn": "Identity"}, "'TopK' with 'Identity', which has no"),
        ("Softmax", {}, "'Softmax' with 'ReLU', which has no"),
        ("TopK", {"k": [4]}, "names a dict"),
        (3, {}, "activation is 3"),
    ],
)
def test_another_activation_of_openais_is_refused(activation, rule, words, tmp_path):
    file = openai(tmp_path, activation, **rule)
    assert words in refusal(lambda: read_foreign(file))


def test_biases_that_fit_no_orientation_are_refused(tmp_path):
    torch.save(pick(weights(), *PLAIN) | {"b_enc": torch.zeros(4)}, tmp_path / "a.pt")
    words = f"W_enc has shape [{D_IN}, {D_SAE}], but its biases have 4 latents and 6 inputs"
    assert words in refusal(lambda: read_foreign(tmp_path / "a.pt"))
