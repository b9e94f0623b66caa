"""Cross-layer transcoders and crosscoders of Gemma Scope 2, read and compared with plain sums."""

import json

import pytest
import torch
from safetensors.torch import save_file

from saelab.config import UsageError
from saelab.evaluation.dictionary import dictionary_figures
from saelab.sae.interop.circuit_tracer_clt import from_foreign_clt
from saelab.sae.interop.gemma_scope_layers import read_params_of_layers
from saelab.sae.interop.releases import find_release
from saelab.sae.interop.sources import locate

N, D, M, ROWS = 3, 4, 6, 20
MLP = "pre_feedforward_layernorm.output", "post_feedforward_layernorm.output"


def released(directory, *, crosscoder, dtype=torch.float32):
    """Files as they are released; a cross-layer transcoder's first targets are not meant."""
    generator = torch.Generator().manual_seed(3)
    layers = []
    for layer in range(N):
        shapes = {"w_enc": (D, M), "w_dec": (M, N, D), "b_enc": (M,), "b_dec": (D,)}
        tensors = {n: torch.randn(s, generator=generator).to(dtype) for n, s in shapes.items()}
        tensors["threshold"] = torch.rand(M, generator=generator).to(dtype)
        save_file(tensors, directory / f"params_layer_{layer}.safetensors")
        layers.append({name: tensor.double() for name, tensor in tensors.items()})
    ends = ("output", "output") if crosscoder else MLP
    which = "5,9,12" if crosscoder else "all"
    modules = [f"model.layers.{{{which}}}.{end}" for end in ends]
    config = dict(zip(("hf_hook_point_in", "hf_hook_point_out"), modules, strict=True))
    config |= {"architecture": "jump_relu", "model_name": "google/gemma-3-270m-pt"}
    (directory / "config.json").write_text(json.dumps(config))
    return layers


def expected(layers, x, *, crosscoder):
    """The reconstruction of `x` [row, layer, d], layer by layer."""
    out = torch.stack([layer["b_dec"] for layer in layers]).repeat(len(x), 1, 1)
    for number, at in enumerate(layers):
        a = x[:, number] @ at["w_enc"] + at["b_enc"]
        z = torch.where(a > at["threshold"], a.clamp_min(0), 0.0)
        for target in range(0 if crosscoder else number, N):
            out[:, target] += z @ at["w_dec"][:, target]
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("crosscoder", [False, True])
def test_a_forward_pass_is_the_sum_over_layers(crosscoder, dtype, tmp_path):
    layers = released(tmp_path, crosscoder=crosscoder, dtype=dtype)
    foreign = read_params_of_layers(tmp_path)
    parts = (
        ("hook_resid_post", "hook_resid_post") if crosscoder else ("mlp.hook_in", "hook_mlp_out")
    )
    numbers = (5, 9, 12) if crosscoder else range(N)
    sites = tuple("+".join(f"blocks.{n}.{part}" for n in numbers) for part in parts)
    assert (foreign.reads, foreign.writes, foreign.crosscoder) == (*sites, crosscoder)
    assert foreign.model == "google/gemma-3-270m-pt"
    sae = from_foreign_clt(foreign)
    assert sae.is_transcoder != crosscoder
    assert bool(sae.transcoders()) != crosscoder
    matrices = (sae.get_parameter(name) for name in ("W_enc", "W_dec"))
    assert 4 * sum(matrix.numel() for matrix in matrices) == foreign.n_bytes
    # A latent reads one layer, and writes to all: these directions cannot be compared.
    assert dictionary_figures(sae, signed=False).encoder_mean is None
    x = torch.randn(ROWS, N, D, generator=torch.Generator().manual_seed(1)).double()
    wanted = expected(layers, x, crosscoder=crosscoder)
    found = sae.reconstruct(x.float().flatten(1)).view(ROWS, N, D)
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)
    factors = [2.0, 0.5, 1.5], [2.0, 0.5, 1.5] if crosscoder else [0.25, 4.0, 0.8]
    sae.read_sites_times(*factors)
    reads, writes = (torch.tensor(each)[:, None] for each in factors)
    again = sae.reconstruct((x * reads).float().flatten(1)).view(ROWS, N, D) / writes
    torch.testing.assert_close(again.double(), wanted, atol=1e-5, rtol=1e-5)


def changed(name, value):
    """A damage: a tensor of layer 1 is replaced; None removes it."""

    def damage(directory):
        tensors = {"w_enc": torch.ones(D, M), "w_dec": torch.ones(M, N, D), "b_enc": torch.ones(M)}
        tensors |= {"threshold": torch.ones(M), "b_dec": torch.ones(D), name: value}
        known = {n: t for n, t in tensors.items() if t is not None}
        save_file(known, directory / "params_layer_1.safetensors")

    return damage


def configured(**values):
    def damage(directory):
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | values))

    return damage


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (changed("affine_skip_connection", torch.eye(D)), "affine skip connection"),
        (changed("w_dec", torch.ones(M, N - 1, D)), r"fit w_enc and the files"),
        (changed("w_dec", torch.full((M, N, D), torch.nan)), "w_dec holds NaN"),
        (changed("threshold", torch.full((M,), torch.inf)), "threshold holds NaN"),
        (changed("b_dec", None), "lacks b_dec"),
        (changed("other", torch.ones(1)), "'other'"),
        (changed("w_enc", torch.ones(D, M, 1)), "2 axes"),
        (configured(architecture="topk"), "'topk'|topk, not 'jump_relu'"),
        (configured(hf_hook_point_in="model.layers.{all}.self_attn"), "no layers that are known"),
        (configured(hf_hook_point_in=None), "no layers that are known"),
        (configured(hf_hook_point_in="model.layers.{5,9}.output"), "there are 3 files"),
        (lambda d: (d / "params_layer_1.safetensors").unlink(), "does not exist"),
        (lambda d: (d / "config.json").unlink(), "does not exist"),
        (lambda d: [file.unlink() for file in d.iterdir()], "holds no params_layer_0"),
    ],
)
def test_what_is_not_whole_is_refused(damage, said, tmp_path):
    released(tmp_path, crosscoder=False)
    damage(tmp_path)
    with pytest.raises(UsageError, match=said):
        read_params_of_layers(tmp_path)


def test_a_release_names_the_files_of_all_layers(tmp_path):
    known = find_release("gemma-scope-2/1b-pt/clt/262k/big")
    assert len(known.files) == 27
    assert known.files[25] == "clt/width_262k_l0_big/params_layer_25.safetensors"
    assert known.read == "clt/width_262k_l0_big"
    known = find_release("gemma-scope-2/270m-it/crosscoder/5-9-12-15/65k/medium")
    assert (
        known.files[3]
        == "crosscoder/layer_5_9_12_15_width_65k_l0_medium/params_layer_3.safetensors"
    )
    place = tmp_path / "crosscoder"
    place.mkdir()
    released(place, crosscoder=True)
    located = locate("hf:any/one/crosscoder", folder=tmp_path, revision=None)
    assert read_params_of_layers(located.path).crosscoder
