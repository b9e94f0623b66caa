"""An SAE of normalised rows is an SAE of plain rows: codes times atoms, and an offset by row."""

import pytest
import torch
from sae.interop.cases import ROWS, refusal, weights

from saelab.sae.affine import TakenRows
from saelab.sae.interop.convert import from_foreign, to_foreign
from saelab.sae.interop.foreign import ForeignSAE
from saelab.sae.start import start_from
from saelab.sae.storage import load_sae, save_sae

NORMS = ["centre", "layer-norm", "unit-norm"]


def foreign(norm, *, subtracts=True):
    tensors = weights()
    return ForeignSAE(
        W_enc=tensors["W_enc"],
        W_dec=tensors["W_dec"],
        b_enc=tensors["b_enc"],
        b_dec=tensors["b_dec"],
        k=4,
        subtract_b_dec=subtracts,
        row_norm=norm,
        source="a test",
    )


@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_it_reconstructs_as_the_other_tool_does(norm, subtracts):
    known = foreign(norm, subtracts=subtracts)
    sae = from_foreign(known)
    codes = sae.encode(ROWS)
    assert torch.equal(codes.dense() != 0, known.encode_dense(ROWS) != 0)
    torch.testing.assert_close(
        sae.decode(codes, ROWS), known.reconstruct(ROWS), rtol=1e-4, atol=1e-4
    )
    by_hand = codes.dense() @ sae.W_dec + sae.offset(ROWS)
    torch.testing.assert_close(by_hand, sae.reconstruct(ROWS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["layer-norm", "unit-norm"])
def test_rows_of_another_scale_have_codes_of_that_scale(norm):
    sae = from_foreign(foreign(norm))
    once, thrice = sae.encode(ROWS).dense(), sae.encode(3 * ROWS).dense()
    torch.testing.assert_close(thrice, 3 * once, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_active_latents_are_affine_in_the_row_at_a_fixed_norm(norm, subtracts):
    sae, x = from_foreign(foreign(norm, subtracts=subtracts)), ROWS.double()
    codes = sae.double().encode(x)
    found = sae.linear_codes(x, codes)
    dense = torch.zeros(len(x), sae.d_sae, dtype=x.dtype)
    dense[found.row, found.latent] = found.values
    # Pre-activations are float32 by design.
    torch.testing.assert_close(dense, codes.dense(), rtol=1e-4, atol=1e-5)
    assert isinstance(found.encoder, TakenRows)
    along = (found.encoder[:] * x[found.row]).sum(1) + found.constant
    torch.testing.assert_close(along, found.values)


@pytest.mark.parametrize("norm", NORMS)
def test_it_is_saved_and_loaded_with_its_norm(norm, tmp_path):
    sae = from_foreign(foreign(norm))
    save_sae(sae, tmp_path / "a.safetensors")
    loaded = load_sae(tmp_path / "a.safetensors")
    assert loaded.row_norm == norm
    assert torch.equal(loaded.reconstruct(ROWS), sae.reconstruct(ROWS))
    assert to_foreign(loaded).row_norm == norm


def test_centred_rows_are_decoded_without_their_mean_where_the_rows_are_not_given():
    sae = from_foreign(foreign("centre"))
    alone = sae.decode(sae.encode(ROWS))
    torch.testing.assert_close(alone + ROWS.mean(1, keepdim=True), sae.reconstruct(ROWS))


def test_what_it_cannot_do_is_said():
    sae = from_foreign(foreign("layer-norm"))
    assert "needs the rows" in refusal(lambda: sae.decode(sae.encode(ROWS)))
    plain = from_foreign(foreign(None))
    assert "normalises rows (layer-norm)" in refusal(lambda: start_from(plain, sae, ROWS))
    assert "is not trained further" in refusal(lambda: sae.rescale(2.0))
    assert "normalises the rows" in str(sae.fused_rule())
