"""circuit-tracer's directories of cross-layer transcoders: written and read, by plain sums."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from saelab.config import UsageError
from saelab.sae.clt import CLTConfig
from saelab.sae.interop.circuit_tracer_clt import (
    from_foreign_clt,
    read_clt,
    to_foreign_clt,
    write_clt,
)
from saelab.sae.transcoder import make_transcoder
from saelab.types import SparseCodes

N, D, M, ROWS = 3, 4, 6, 20


def joined(part, last=N - 1):
    return "+".join(f"blocks.{layer}.{part}" for layer in (*range(N - 1), last))


SITES = joined("ln2.hook_out"), joined("hook_mlp_out")
FACTORS = (2.0, 0.5, 1.5), (0.25, 4.0, 0.8)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trained(selection="jumprelu", decoders="free"):
    options = {"selection": selection, "decoders": decoders, "widths": (D,) * N, "k": 6}
    config = CLTConfig.model_validate({"d_sae": N * M} | options)
    sae = make_transcoder(config.build(N * D), N * D)
    with torch.no_grad():
        for seed, (name, value) in enumerate(sae.named_parameters()):
            value.copy_(
                random(*value.shape, seed=seed).abs()
                if name == "threshold"
                else random(*value.shape, seed=seed)
            )
        if selection == "batch-topk":
            sae.get_buffer("threshold").fill_(0.3)
        if decoders == "free":
            sae.W_dec.mul_(torch.ones(N, N).triu().repeat_interleave(M, 0).repeat_interleave(D, 1))
    return sae


@pytest.mark.parametrize("decoders", ["free", "tied-source", "tied-target"])
@pytest.mark.parametrize("selection", ["jumprelu", "batch-topk"])
def test_the_files_say_what_the_sae_does_to_activations_as_they_are(selection, decoders, tmp_path):
    sae, x = trained(selection, decoders), random(ROWS, N, D, seed=9)
    write_clt(to_foreign_clt(sae, SITES, FACTORS, "gpt2"), tmp_path / "out")
    reads, writes = (torch.tensor(each)[:, None] for each in FACTORS)
    expected = sae.reconstruct((x * reads).flatten(1)).view(ROWS, N, D) / writes
    found = torch.zeros(ROWS, N, D)
    for layer in range(N):
        at, to = (load_file(tmp_path / f"out/W_{e}_{layer}.safetensors") for e in ("enc", "dec"))
        a = x[:, layer] @ at[f"W_enc_{layer}"].T + at[f"b_enc_{layer}"]
        z = torch.where(a > at[f"threshold_{layer}"], a.relu(), 0.0)
        found[:, layer:] += torch.einsum("rm,mtd->rtd", z, to[f"W_dec_{layer}"])
        found[:, layer] += at[f"b_dec_{layer}"]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    text = (tmp_path / "out/config.yaml").read_text()
    assert 'model_name: "gpt2"\nmodel_kind: cross_layer_transcoder\n' in text


def test_what_is_read_is_what_was_written_and_can_be_read_at_other_scales(tmp_path):
    sae, x = trained(), random(ROWS, N * D, seed=9)
    ones = (1.0,) * N, (1.0,) * N
    write_clt(to_foreign_clt(sae, SITES, ones), tmp_path / "out")
    foreign = read_clt(tmp_path / "out")
    assert foreign.reads == "+".join(f"blocks.{i}.mlp.hook_in" for i in range(N))
    loaded = from_foreign_clt(foreign)
    torch.testing.assert_close(loaded.reconstruct(x), sae.reconstruct(x), atol=1e-4, rtol=1e-4)
    code = SparseCodes(torch.ones(1, 1), torch.tensor([[2 * M + 1]]), N * M)
    assert not loaded.written(code)[0, : 2 * D].any()
    loaded.read_sites_times(*FACTORS)
    reads, writes = (torch.tensor(each).repeat_interleave(D) for each in FACTORS)
    again = loaded.reconstruct(x * reads) / writes
    torch.testing.assert_close(again, sae.reconstruct(x), atol=1e-4, rtol=1e-4)


def without(name):
    return lambda directory: (directory / name).unlink()


def with_decoder(value):
    tensors = {"W_dec_2": value}
    return lambda directory: save_file(tensors, directory / "W_dec_2.safetensors")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without("W_dec_1.safetensors"), "does not exist|No such file"),
        (without("W_enc_2.safetensors"), "does not exist|No such file"),
        (lambda d: (d / "config.yaml").write_text("model_kind: other\n"), "other, not cross_layer"),
        (without("config.yaml"), "feature_input_hook"),
        (with_decoder(torch.ones(M, 2, D)), "fits W_enc"),
        (with_decoder(torch.full((M, 1, D), torch.nan)), "NaN"),
    ],
)
def test_damaged_directories_are_refused(damage, said, tmp_path):
    write_clt(to_foreign_clt(trained(), SITES, FACTORS), tmp_path)
    damage(tmp_path)
    with pytest.raises((UsageError, FileNotFoundError), match=said):
        read_clt(tmp_path)


def test_what_circuit_tracer_has_no_form_for_is_refused(tmp_path):
    with pytest.raises(UsageError, match="batch-topk and jumprelu can be exported"):
        to_foreign_clt(trained("topk"), SITES, FACTORS)
    shifted = joined("ln2.hook_out", 5), joined("hook_mlp_out", 5)
    with pytest.raises(UsageError, match="of layers 0, 1,"):
        write_clt(to_foreign_clt(trained(), shifted, FACTORS), tmp_path / "out")
