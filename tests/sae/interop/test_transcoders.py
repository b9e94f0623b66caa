"""Transcoders of other tools, row by row in float64, and there and back again."""

import json

import pytest
import torch
from sae.interop.cases import refusal
from safetensors.torch import load_file, save_file

from saelab.sae.interop.convert import from_foreign, load_foreign_sae, to_foreign
from saelab.sae.interop.sae_lens import read_sae_lens
from saelab.sae.interop.sae_lens_write import write_sae_lens
from saelab.sae.interop.sparsify import read_sparsify
from saelab.sae.transcoder import make_transcoder
from saelab.sae.variants import SAE_CONFIG

D_IN, D_SAE, D_OUT = 6, 10, 4
ROWS = torch.randn(40, D_IN, generator=torch.Generator().manual_seed(0)) * 2 + 0.3


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stored(*, skip: bool, jump: bool) -> dict[str, torch.Tensor]:
    """What SAELens keeps: W_skip is [d_out d_in]."""
    tensors = {
        "W_enc": normal(1, D_IN, D_SAE),
        "W_dec": normal(2, D_SAE, D_OUT),
        "b_enc": normal(3, D_SAE),
        "b_dec": normal(4, D_OUT),
    }
    if jump:
        tensors["threshold"] = normal(5, D_SAE).abs()
    if skip:
        tensors["W_skip"] = normal(6, D_OUT, D_IN)
    return tensors


def written(tensors, x=ROWS) -> torch.Tensor:
    """The formula: ReLU(x W_enc + b_enc), over the threshold, W_dec + b_dec + W_skip x."""
    t = {name: value.double() for name, value in tensors.items()}
    pre = x.double() @ t["W_enc"] + t["b_enc"]
    codes = pre.relu() * (pre > t.get("threshold", torch.zeros(D_SAE)))
    out = codes @ t["W_dec"] + t["b_dec"]
    return out + x.double() @ t["W_skip"].T if "W_skip" in t else out


def lens_directory(path, tensors, **changes):
    parts = ("jumprelu" * ("threshold" in tensors), "skip" * ("W_skip" in tensors), "transcoder")
    cfg = {
        "architecture": "_".join(filter(None, parts)),
        "d_in": D_IN,
        "d_sae": D_SAE,
        "d_out": D_OUT,
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "metadata": {
            "sae_lens_version": "6.22.0",
            "hook_name": "blocks.3.ln2.hook_normalized",
            "hook_name_out": "blocks.3.hook_mlp_out",
        },
    }
    path.mkdir(parents=True)
    (path / "cfg.json").write_text(json.dumps(cfg | changes))
    save_file(tensors, path / "sae_weights.safetensors")
    return path


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
@pytest.mark.parametrize("jump", [False, True], ids=["relu", "jumprelu"])
def test_sae_lens_transcoders_do_what_they_do_there(tmp_path, skip, jump):
    tensors = stored(skip=skip, jump=jump)
    path = lens_directory(tmp_path / "sae", tensors)
    foreign = read_sae_lens(path)
    assert (foreign.hook, foreign.hook_out) == (
        "blocks.3.ln2.hook_normalized",
        "blocks.3.hook_mlp_out",
    )
    sae = load_foreign_sae(path)
    assert (sae.is_transcoder, sae.d_in, sae.d_out) == (True, D_IN, D_OUT)
    expected = written(tensors).float()
    torch.testing.assert_close(foreign.reconstruct(ROWS), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sae.reconstruct(ROWS), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
@pytest.mark.parametrize("variant", ["jumprelu", "batch-topk"])
def test_a_trained_transcoder_written_for_sae_lens_does_there_what_it_does_here(
    tmp_path, variant, skip
):
    config = SAE_CONFIG.validate_python({"variant": variant, "d_sae": D_SAE, "k": 3})
    sae = make_transcoder(config.build(D_IN), D_OUT, skip=skip)
    with torch.no_grad():
        for seed, parameter in enumerate(sae.parameters()):
            parameter.copy_(
                normal(seed, *parameter.shape).abs()
                if parameter.ndim < 2
                else normal(seed, *parameter.shape)
            )
        if variant == "batch-topk":
            sae.get_buffer("threshold").fill_(0.7)
    write_sae_lens(to_foreign(sae), tmp_path / "lens")
    tensors = load_file(tmp_path / "lens" / "sae_weights.safetensors")
    cfg = json.loads((tmp_path / "lens" / "cfg.json").read_text())
    assert cfg["architecture"] == f"jumprelu_{'skip_' * skip}transcoder"
    assert (cfg["d_out"], cfg["apply_b_dec_to_input"]) == (D_OUT, False)
    assert tensors.get("W_skip", torch.zeros(D_OUT, D_IN)).shape == (D_OUT, D_IN)
    expected = sae.reconstruct(ROWS).detach()
    torch.testing.assert_close(written(tensors).float(), expected, atol=1e-4, rtol=1e-4)
    back = load_foreign_sae(tmp_path / "lens")
    torch.testing.assert_close(back.reconstruct(ROWS), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
def test_sparsify_transcoders_do_what_they_do_there(tmp_path, skip):
    tensors = {
        "encoder.weight": normal(1, D_SAE, D_IN),
        "encoder.bias": normal(2, D_SAE),
        "W_dec": normal(3, D_SAE, D_IN),
        "b_dec": normal(4, D_IN),
    }
    if skip:
        tensors["W_skip"] = normal(5, D_IN, D_IN)
    path = tmp_path / "layers.3.mlp"
    path.mkdir()
    cfg = {"k": 3, "d_in": D_IN, "num_latents": D_SAE, "transcode": True, "skip_connection": skip}
    (path / "cfg.json").write_text(json.dumps(cfg))
    save_file(tensors, path / "sae.safetensors")
    t = {name: value.double() for name, value in tensors.items()}
    pre = (ROWS.double() @ t["encoder.weight"].T + t["encoder.bias"]).relu()
    best = pre.topk(3, dim=1)
    expected = torch.zeros_like(pre).scatter(1, best.indices, best.values) @ t["W_dec"] + t["b_dec"]
    if skip:
        expected = expected + ROWS.double() @ t["W_skip"].T
    foreign = read_sparsify(path)
    assert (foreign.hook, foreign.hook_out) == (None, None)
    sae = from_foreign(foreign)
    torch.testing.assert_close(sae.reconstruct(ROWS), expected.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_out": 7}, "d_out is 7, but W_dec has 4"),
        ({"apply_b_dec_to_input": True}, "cannot subtract b_dec from what it reads"),
        ({"normalize_activations": "expected_average_only_in"}, "a transcoder's inputs are scaled"),
        ({"architecture": "skip_transcoder"}, "W_skip"),
        ({"metadata": {"hook_name_out": "../x"}}, "is no name of a hook"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, changes, message):
    path = lens_directory(tmp_path / "sae", stored(skip=False, jump=False), **changes)
    assert message in refusal(lambda: read_sae_lens(path))


def test_a_transcoder_that_selects_by_k_has_no_form_there(tmp_path):
    config = SAE_CONFIG.validate_python({"variant": "topk", "d_sae": D_SAE, "k": 3})
    sae = make_transcoder(config.build(D_IN), D_OUT)
    assert "no transcoder that selects its latents by k" in refusal(
        lambda: write_sae_lens(to_foreign(sae), tmp_path / "lens")
    )
    assert not (tmp_path / "lens").exists()
