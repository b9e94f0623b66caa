"""Wide SAEs: 16-bit weights, files that are opened as views, and selection block by block."""

import pytest
import torch
from bounded import at_most
from safetensors.torch import save_file

from saelab.config import UsageError
from saelab.files import sha256_file
from saelab.formats import mapped, tensor_header
from saelab.formats.tensor_header import identity_of
from saelab.formats.tensors import read_tensor_header, write_tensors
from saelab.sae import in_blocks
from saelab.sae.decoder import atoms_of, dtype_of
from saelab.sae.interop.convert import from_foreign, save_sae_lens, to_foreign
from saelab.sae.interop.detect import read_foreign
from saelab.sae.storage import check_sae, load_sae, save_sae
from saelab.sae.variants import SAE_CONFIG

D, M = 6, 40
VARIANTS = {
    "topk": {"k": 7},
    "abs-topk": {"k": 7},
    "hierarchical-topk": {"k": 7},
    "gradient-topk": {"k": 7},
    "batch-topk": {"k": 7},
    "matryoshka": {"k": 7},
    "jumprelu": {"k": 7},
    "standard": {},
}


def whole_numbers(*shape, seed=0):
    """Small whole numbers: sums of their products are exact in any order."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).float()


def made(variant, **options):
    """An SAE of whole numbers, so that there are many ties and every sum is exact."""
    config = SAE_CONFIG.validate_python({"variant": variant, "d_sae": M} | options)
    sae = config.build(D, torch.Generator().manual_seed(0)).eval().requires_grad_(False)
    for i, (name, tensor) in enumerate(sae.state_dict().items()):
        numbers = whole_numbers(*tensor.shape, seed=i)
        tensor.copy_(numbers.abs() if name == "threshold" else numbers)
    return sae


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("numbers", "least"), [(50, 4), (200, 16), (10, 1)])
def test_selection_in_blocks_keeps_what_all_latents_at_once_keep(
    variant, numbers, least, monkeypatch
):
    sae, x = made(variant, **VARIANTS[variant]), whole_numbers(9, D, seed=5)
    at_once = sae.encode(x)
    monkeypatch.setitem(in_blocks.AT_ONCE, "cpu", numbers)
    monkeypatch.setattr(in_blocks, "LEAST_LATENTS", least)
    blocks = sae.encode(x)
    # Of equal pre-activations either may be kept: values, their number and all larger ones agree.
    assert torch.equal(blocks.values.abs().sort(1).values, at_once.values.abs().sort(1).values)
    dense = (blocks.dense(), at_once.dense())
    last = at_once.values.abs().amin(1, keepdim=True)
    surely = [torch.where(codes.abs() > last, codes, 0) for codes in dense]
    assert torch.equal(*surely)
    encoder = sae.affine_encoder()
    assert encoder is not None
    pre_acts = encoder.pre_activations(x)
    chosen = blocks.active
    assert torch.equal(
        blocks.values[chosen], pre_acts[blocks.rows()[chosen], blocks.indices[chosen]]
    )
    assert (blocks.values.abs().diff(dim=1) <= 0).all()


@pytest.mark.parametrize("variant", [*VARIANTS, "gated"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_weights_stay_and_give_what_the_widened_ones_give(variant, dtype, tmp_path):
    sae = made(variant, **VARIANTS.get(variant, {}))
    generator = torch.Generator().manual_seed(1)
    for name in ("W_enc", "W_dec"):
        getattr(sae, name).copy_(torch.randn(getattr(sae, name).shape, generator=generator))
        rounded = getattr(sae, name).to(dtype)
        getattr(sae, name).copy_(rounded)
    narrow = made(variant, **VARIANTS.get(variant, {}))
    narrow.load_state_dict(
        {n: t.to(dtype) if n in ("W_enc", "W_dec") else t for n, t in sae.state_dict().items()},
        assign=True,
    )
    save_sae(narrow, tmp_path / "narrow")
    back = load_sae(tmp_path / "narrow")
    kept = torch.float32 if variant == "gated" else dtype
    assert (back.W_dec.dtype, back.W_enc.dtype, dtype_of(back)) == (kept, kept, torch.float32)
    x = torch.randn(9, D, generator=generator)
    torch.testing.assert_close(back.encode(x).dense(), sae.encode(x).dense())
    torch.testing.assert_close(back.reconstruct(x), sae.reconstruct(x))
    assert torch.equal(atoms_of(back), sae.W_dec)
    codes = sae.encode(x)
    if variant != "gradient-topk":
        torch.testing.assert_close(
            back.linear_codes(x, codes).values, sae.linear_codes(x, codes).values
        )


def test_16_bit_files_of_other_tools_come_and_go_unchanged(tmp_path):
    sae = made("jumprelu")
    foreign = to_foreign(sae).with_matrices_of(torch.bfloat16)
    back = from_foreign(foreign)
    assert back.W_enc.dtype == torch.bfloat16
    save_sae_lens(back, tmp_path)
    again = read_foreign(tmp_path)
    assert torch.equal(again.W_dec, foreign.W_dec)
    assert again.W_dec.dtype == torch.bfloat16
    x = whole_numbers(4, D)
    assert torch.equal(again.encode_dense(x), sae.encode(x).dense())
    assert again.with_norms_in_codes().W_dec.dtype == torch.float32


@pytest.fixture
def all_mapped(monkeypatch):
    """Every file counts as large."""
    monkeypatch.setattr(mapped, "MAPPED_FROM", 0)


def test_a_large_file_is_opened_as_views_whose_change_stays_in_the_process(tmp_path, all_mapped):
    path, sae = tmp_path / "weights", made("topk", k=3)
    save_sae(sae, path)
    before = path.read_bytes()
    views = load_sae(path)
    assert all(torch.equal(t, views.state_dict()[n]) for n, t in sae.state_dict().items())
    data = {t.untyped_storage().data_ptr() for t in views.state_dict().values()}
    assert len(data) == 4
    views.W_dec[0] = 100
    assert path.read_bytes() == before
    path.unlink()
    assert float(views.W_dec[0, 0]) == 100
    assert torch.equal(views.W_dec[1:], sae.W_dec[1:])
    path.write_bytes(before[:-4] + b"\x00\x00\x80\x3f")
    with pytest.raises(UsageError, match="do not match its seal"):
        load_sae(path)


def test_a_file_too_large_to_be_read_through_is_checked_where_it_is_used(
    tmp_path, all_mapped, monkeypatch
):
    monkeypatch.setattr(mapped, "CHECKED_TO", 0)
    path, sae = tmp_path / "weights", made("topk", k=3)
    save_sae(sae, path)
    header = read_tensor_header(path)
    tensors = sae.state_dict()
    tensors["W_enc"][2, 30] = float("nan")
    write_tensors(path, tensors, header.metadata)
    opened = load_sae(path)
    with pytest.raises(UsageError, match="W_enc holds NaN"):
        check_sae(path)
    monkeypatch.setitem(in_blocks.AT_ONCE, "cpu", 20)
    with pytest.raises(UsageError, match="pre-activation is NaN or infinite"):
        opened.encode(whole_numbers(2, D))
    tensors["b_enc"][0] = float("inf")
    write_tensors(path, tensors, header.metadata)
    with pytest.raises(UsageError, match="b_enc holds NaN"):
        load_sae(path)


def test_a_large_file_is_known_by_its_header_which_seals_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_header, "CHECKED_TO", 0)
    found = []
    for name, change in (("a", 0.0), ("b", 1.0), ("c", 0.0)):
        sae = made("topk", k=3)
        sae.W_dec.data[5, 1] += change
        save_sae(sae, tmp_path / name)
        found.append(identity_of(tmp_path / name))
    assert found[0] == found[2] != found[1]
    save_file({"x": torch.zeros(3)}, tmp_path / "unsealed")
    assert identity_of(tmp_path / "unsealed") == sha256_file(tmp_path / "unsealed")


def test_a_million_latents_are_opened_and_encoded_in_bounded_memory(
    tmp_path, all_mapped, monkeypatch
):
    monkeypatch.setitem(in_blocks.AT_ONCE, "cpu", 2**18)
    m, d, n = 2**20, 8, 16
    config = SAE_CONFIG.validate_python({"variant": "topk", "d_sae": m, "k": 4})
    with torch.device("meta"):
        sae = config.build(d)
    W = torch.zeros(m, d, dtype=torch.bfloat16)
    planted = torch.arange(n) * 65_000 + 7
    W[planted] = torch.nn.functional.normalize(torch.randn(n, d), dim=1).bfloat16()
    tensors = {"W_dec": W, "W_enc": W.T, "b_enc": torch.zeros(m), "b_dec": torch.zeros(d)}
    sae.load_state_dict(tensors, assign=True)
    save_sae(sae, tmp_path / "weights")
    file = (tmp_path / "weights").stat().st_size
    # Address space counts the file's views; all pre-activations would take 64 MiB.
    with at_most(file // 2**20 + 60):
        codes = load_sae(tmp_path / "weights").encode(10 * W[planted].float())
    assert torch.equal(codes.indices[:, 0], planted)
