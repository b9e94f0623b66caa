"""The product that also finds each segment's largest entry, against torch's and a read of it."""

import pytest
import torch
from interpreted import multiply_bfloat16
from kernels.triton_device import DEVICE

from saelab.kernels.triton import encode
from saelab.kernels.triton.encode import Tiles, encode_rows
from saelab.kernels.triton.select.rows import segment_maxima
from saelab.sae.context import LossContext
from saelab.sae.topk import TopKConfig
from saelab.training.fused import FusedOptions, FusedStep

if DEVICE == "cpu":
    multiply_bfloat16()
# Whole tiles take long under the interpreter.
SMALL = Tiles(rows=16, columns=128, depth=16, wave=2)


def given(batch, m, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, W = (torch.randn(n, d, generator=generator) for n in (batch, m))
    bias = torch.randn(m, generator=generator)
    return tuple(tensor.to(DEVICE, torch.bfloat16) for tensor in (x, W, bias))


@pytest.mark.parametrize("by_magnitude", [False, True])
@pytest.mark.parametrize(
    ("batch", "m", "d"),
    [
        (32, 256, 32),
        (40, 200, 24),  # No tile at an edge is whole.
        (5, 712, 40),  # A wave that is not whole.
    ],
)
def test_it_writes_the_product_and_what_a_read_of_it_finds(batch, m, d, by_magnitude, monkeypatch):
    monkeypatch.setattr(encode, "TILES", SMALL)
    x, W, bias = given(batch, m, d)
    out = torch.zeros(batch, m, dtype=x.dtype, device=DEVICE)
    maxima = torch.full_like(segment_maxima(out, by_magnitude=False)[0], torch.nan)
    encode_rows(x, W, bias, out, maxima, by_magnitude=by_magnitude)
    expected = x.double() @ W.double().T + bias.double()
    # Half of the last place, and the sum's own rounding; the interpreter cuts the last place off.
    rtol = 2**-8 if x.is_cuda else 2**-7
    torch.testing.assert_close(out.double(), expected, rtol=rtol, atol=1e-5)
    assert torch.equal(maxima, segment_maxima(out, by_magnitude=by_magnitude)[0])


def test_a_step_by_it_is_the_step_without(monkeypatch):
    """To the bit on small integers, whose sums have no rounding."""
    sae = TopKConfig(d_sae=72, k=3, aux_coefficient=0).build(16)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        sae.W_enc.copy_(torch.randint(-3, 4, (16, 72), generator=generator))
        sae.W_dec.copy_(torch.nn.functional.normalize(sae.W_dec, dim=1))
    x, states = torch.randint(-3, 4, (4, 16), generator=generator).to(DEVICE).float(), []
    monkeypatch.setattr(encode, "TILES", SMALL)
    for finds in (False, True):
        monkeypatch.setattr(encode, "finds_maxima", lambda *_, finds=finds: finds)
        step = FusedStep(sae.to(DEVICE), FusedOptions(4, 1.0))
        assert (step.graphs.step.product.found.maxima is not None) == finds
        step.prepare(LossContext(1.0))
        step.set_lr(1e-3)
        step(x)
        states.append(step.tensors())
    torch.testing.assert_close(*states, rtol=0, atol=0, equal_nan=True)


def test_what_it_cannot_do_is_left_to_torch():
    x = torch.zeros(4, 24, dtype=torch.bfloat16, device=DEVICE)
    newer = x.is_cuda and torch.cuda.get_device_capability() >= encode.HOPPER
    assert encode.finds_maxima(x, 512) == newer
    assert not encode.finds_maxima(x.float(), 512)
    assert not encode.finds_maxima(x[:, :20].contiguous(), 512)
    assert not encode.finds_maxima(x, 500)
    assert not encode.finds_maxima(x, 2**25)
