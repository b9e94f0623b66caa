"""sparsify's directories mean what its coder computes from them."""

from typing import Any

import pytest
import torch
from sae.interop.cases import (
    D_IN,
    D_SAE,
    PLAIN,
    ROWS,
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
from safetensors.torch import save_file

from saelab.config import UsageError
from saelab.sae.interop.foreign import ForeignSAE
from saelab.sae.interop.sparsify import read_sparsify
from saelab.sae.interop.sparsify_write import write_sparsify


def stored(tensors):
    """The encoder as nn.Linear stores it, transposed; the decoder as a table of atoms."""
    return {
        "encoder.weight": tensors["W_enc"].T.contiguous(),
        "encoder.bias": tensors["b_enc"],
        "W_dec": tensors["W_dec"].contiguous(),
        "b_dec": tensors["b_dec"],
    }


def directory(path, tensors, **cfg):
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / "sae.safetensors")
    base = {
        "activation": "topk",
        "expansion_factor": 32,
        "normalize_decoder": True,
        "num_latents": D_SAE,
        "k": 3,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": D_IN,
    }
    write_json(path / "cfg.json", base | cfg)
    return path


def test_the_first_k_are_kept_after_relu_and_b_dec_is_subtracted(tmp_path):
    tensors = weights()
    codes = first(pre_activations(tensors, centred=True), 3)
    sae = read_sparsify(directory(tmp_path, stored(tensors)))
    assert_means(sae, codes, reconstruction(codes, tensors))
    assert not sae.signed


def test_signed_codes_are_not_rectified(tmp_path):
    tensors = weights()
    codes = first(pre_activations(tensors, centred=True), 3, signed=True)
    assert (codes < 0).any()
    sae = read_sparsify(directory(tmp_path, stored(tensors), signed=True))
    assert_means(sae, codes, reconstruction(codes, tensors))


def test_a_configuration_of_2024_is_read(tmp_path):
    """It has an expansion factor and no number of latents, no activation and no kinds."""
    tensors = weights()
    wide = stored(tensors) | {
        "encoder.weight": torch.cat([tensors["W_enc"].T, tensors["W_enc"].T[:2]]),
        "encoder.bias": torch.cat([tensors["b_enc"], tensors["b_enc"][:2] - 100]),
        "W_dec": torch.cat([tensors["W_dec"], tensors["W_dec"][:2]]),
    }
    directory(tmp_path, wide)
    old = {"expansion_factor": 2, "normalize_decoder": True, "num_latents": 0, "k": 3, "d_in": D_IN}
    write_json(tmp_path / "cfg.json", old)
    sae = read_sparsify(tmp_path)
    assert (sae.d_sae, sae.k) == (12, 3)
    write_json(tmp_path / "cfg.json", old | {"expansion_factor": 3})
    assert "describes 18 latents" in refusal(lambda: read_sparsify(tmp_path))


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("layers.10", "blocks.10.hook_resid_post"),
        ("h.3", "blocks.3.hook_resid_post"),
        ("gpt_neox.layers.0", "blocks.0.hook_resid_post"),
        ("layers.10.mlp", None),
        ("layer_10", None),
        ("embed_tokens", None),
    ],
)
def test_the_directorys_name_tells_the_hook(name, hook, tmp_path, monkeypatch):
    path = directory(tmp_path / name, stored(weights()))
    assert read_sparsify(path).hook == hook
    monkeypatch.chdir(path)
    assert read_sparsify(path.relative_to(path)).hook == hook


@pytest.mark.parametrize(
    ("run", "model"),
    [
        ({"sae": {"k": 3}, "model": "EleutherAI/pythia-160m"}, "EleutherAI/pythia-160m"),
        ({"model": {"of": "another tool"}}, None),
        (None, None),
    ],
)
def test_the_runs_configuration_tells_the_model(run, model, tmp_path):
    path = directory(tmp_path / "layers.10", stored(weights()))
    if run is not None:
        write_json(tmp_path / "config.json", run)
    assert read_sparsify(path).model == model


def test_half_precision_becomes_float32(tmp_path):
    tensors = {name: tensor.bfloat16() for name, tensor in stored(weights()).items()}
    sae = read_sparsify(directory(tmp_path, tensors))
    assert torch.equal(sae.W_dec, tensors["W_dec"].float())


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        ({"skip_connection": True, "transcode": True}, "W_skip"),
        ({"skip_connection": True}, "only a transcoder ('transcode': true) has one"),
        ({"transcode": "no"}, "transcode is 'no'"),
        ({"activation": "groupmax"}, "'groupmax', but only 'topk'"),
        ({"k": None}, "has no k"),
        ({"k": 11}, "k=11 is not within 1 and d_sae=10"),
        ({"k": -1}, "k is -1"),
        ({"num_latents": 10**12}, "describes 1000000000000 latents"),
        ({"d_in": 7}, "d_in is 7"),
        ({"d_in": "../x"}, "d_in is '../x'"),
        ({"signed": "yes"}, "signed is 'yes'"),
    ],
)
def test_what_cannot_be_meant_is_refused(cfg, words, tmp_path):
    directory(tmp_path, stored(weights()), **cfg)
    assert words in refusal(lambda: read_sparsify(tmp_path))


def test_a_coder_without_its_decoder_is_refused(tmp_path):
    tensors = stored(weights())
    del tensors["W_dec"]
    directory(tmp_path, tensors)
    assert "lacks W_dec" in refusal(lambda: read_sparsify(tmp_path))


def test_a_skip_connection_that_the_configuration_hides_is_refused(tmp_path):
    directory(tmp_path, stored(weights()) | {"W_skip": torch.zeros(6, 6)})
    assert "holds 'W_skip'" in refusal(lambda: read_sparsify(tmp_path))


@pytest.mark.parametrize("subtracts", [True, False], ids=["before the key", "with the key"])
def test_a_skip_connection_makes_a_transcoder_whose_encoder_may_subtract_b_dec(subtracts, tmp_path):
    tensors = weights()
    W_skip = torch.randn(D_IN, D_IN, generator=torch.Generator().manual_seed(3))
    told = {"transcode": None} if subtracts else {"transcode": True}
    path = directory(tmp_path, stored(tensors) | {"W_skip": W_skip}, skip_connection=True, **told)
    codes = first(pre_activations(tensors, centred=subtracts), 3)
    (rows, skip) = doubles(ROWS, W_skip)
    sae = read_sparsify(path)
    assert sae.transcoder
    assert_means(sae, codes, reconstruction(codes, tensors) + rows @ skip.T)


def test_missing_files_are_named(tmp_path):
    assert "cfg.json does not exist" in refusal(lambda: read_sparsify(tmp_path))
    write_json(tmp_path / "cfg.json", {"k": 3})
    assert "sae.safetensors does not exist" in refusal(lambda: read_sparsify(tmp_path))


@pytest.mark.parametrize("kind", ["sae", "uncentred", "transcoder", "skip"])
def test_what_is_written_is_read_as_it_was(kind, tmp_path):
    tensors = weights()
    parts = pick(tensors, *PLAIN)
    transcoder = kind in ("transcoder", "skip")
    skip = torch.eye(D_IN) * 2 + 1 if kind == "skip" else None
    sae = ForeignSAE(
        **parts, k=3, subtract_b_dec=kind == "sae", transcoder=transcoder, W_skip=skip, source="x"
    )
    write_sparsify(sae, tmp_path / "layers.3")
    back = read_sparsify(tmp_path / "layers.3")
    torch.testing.assert_close(back.encode_dense(ROWS), sae.encode_dense(ROWS))
    torch.testing.assert_close(back.reconstruct(ROWS), sae.reconstruct(ROWS))
    assert back.hook == (None if transcoder else "blocks.3.hook_resid_post")


def test_what_sparsify_has_no_place_for_is_refused(tmp_path):
    parts = pick(weights(), *PLAIN)
    others: tuple[dict[str, Any], ...]
    others = ({"k": 3, "signed": True}, {"threshold": torch.zeros(D_SAE)})
    for other in others:
        sae = ForeignSAE(**parts, **other, subtract_b_dec=True, source="x")
        with pytest.raises(UsageError, match="k largest latents"):
            write_sparsify(sae, tmp_path)
    wide: dict[str, Any] = {**parts, "W_dec": torch.ones(D_SAE, 2), "b_dec": torch.ones(2)}
    sae = ForeignSAE(**wide, k=3, subtract_b_dec=False, transcoder=True, source="x")
    with pytest.raises(UsageError, match="reads 6 and writes 2"):
        write_sparsify(sae, tmp_path)
