"""The sparse kernels against dense torch, forward and backward, under the interpreter."""

import pytest
import torch
from kernels.triton_device import DEVICE

from saelab.kernels import reference
from saelab.kernels.torch.pairs import heavy_slices, pairs_by_latent
from saelab.kernels.triton import pairs as by_kernels
from saelab.kernels.triton.codes.rows import RowCodes
from saelab.kernels.triton.decode.autograd import sparse_decode
from saelab.kernels.triton.decode.sums import sum_by_latent
from saelab.kernels.triton.weights import Decoder
from saelab.pursuit.select import above, abs_top_k, nonzero, top_k
from saelab.types import SparseCodes


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def assert_near(a, b):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("d_out", "ragged"), [(1, False), (37, True)])
def test_decode_and_its_gradients_equal_the_dense_product(d_out, ragged):
    pre_acts, W, upstream = normal(4, 7), normal(7, d_out, seed=1), normal(4, d_out, seed=2)
    codes = nonzero(above(pre_acts, torch.tensor(0.3)).dense()) if ragged else top_k(pre_acts, 3)
    results = []
    for decode in (sparse_decode, reference.sparse_decode):
        values, weights = codes.values.clone().requires_grad_(), W.clone().requires_grad_()
        out = decode(SparseCodes(values, codes.indices, 7, codes.offsets), weights)
        out.backward(upstream)
        results.append((out.detach(), values.grad, weights.grad))
    for fast, slow in zip(*results, strict=True):
        assert_near(fast, slow)


def test_a_slice_of_wider_codes_decodes_as_its_copy_does():
    codes, W = top_k(normal(4, 7), 3), normal(7, 5, seed=1)
    for start, stop in ((1, 2), (0, 2)):
        part = SparseCodes(codes.values[:, start:stop], codes.indices[:, start:stop], 7)
        assert_near(sparse_decode(part, W), reference.sparse_decode(part, W))


def test_the_inversion_lists_each_latents_pairs_in_the_order_of_the_codes():
    indices = torch.tensor([[2, 0], [2, 3], [0, 2]])
    pairs = pairs_by_latent(indices, 5)
    assert pairs.order.tolist() == [1, 4, 0, 2, 5, 3]
    assert pairs.offsets.tolist() == [0, 2, 2, 5, 6, 6]


def test_split_latents_have_pieces_that_cover_their_pairs():
    indices = torch.tensor([[0, j % 3 + 1] for j in range(7)])
    slices = heavy_slices(pairs_by_latent(indices, 5), size=3)
    assert slices.first.tolist() == [0, 3, 3, 3, 3, 3]
    assert slices.latent[:3].tolist() == [0, 0, 0]
    slices = heavy_slices(pairs_by_latent(indices, 5), size=4, above=2)
    assert slices.first.tolist() == [0, 2, 3, 3, 3, 3]
    assert slices.latent[:3].tolist() == [0, 0, 1]


@pytest.mark.parametrize(("d_sae", "size", "above"), [(5, 3, 3), (140, 4, 2), (2**16 + 1, 2, 1)])
def test_kernels_find_the_pairs_and_slices_that_torch_does(monkeypatch, d_sae, size, above):
    if DEVICE == "cpu" and d_sae > 1000:  # Interpreted, a program takes long, however wide.
        monkeypatch.setattr(by_kernels, "BLOCK", 2**17)
    generator = torch.Generator().manual_seed(d_sae)
    drawn = torch.randint(0, d_sae, (9, 4), generator=generator)
    indices = torch.where(drawn % 3 == 0, d_sae - 1, drawn).int().to(DEVICE)
    ours, theirs = by_kernels.pairs_by_latent(indices, d_sae), pairs_by_latent(indices, d_sae)
    assert torch.equal(ours.order, theirs.order)
    assert torch.equal(ours.offsets, theirs.offsets)
    split, wanted = by_kernels.heavy_slices(ours, size, above), heavy_slices(theirs, size, above)
    assert torch.equal(split.first, wanted.first)
    assert torch.equal(split.latent, wanted.latent)


@pytest.mark.parametrize("size", [1, 2, 100])
def test_sums_do_not_depend_on_how_latents_are_split(size):
    codes, rows = top_k(normal(5, 4), 2), normal(5, 19, seed=1)
    pairs = pairs_by_latent(codes.indices, 4)
    tokens = codes.rows().flatten().to(torch.int32)
    out = sum_by_latent(pairs, heavy_slices(pairs, size), tokens, codes.values.flatten(), rows)
    assert_near(out, reference.sum_by_latent(codes, rows))


@pytest.mark.parametrize("d_in", [16, 21])
def test_residual_error_and_code_gradient_equal_the_dense_ones(d_in):
    x, W, bias = normal(3, d_in), normal(6, d_in, seed=1), normal(d_in, seed=2)
    scale = normal(6, seed=3).abs() + 0.5
    codes = abs_top_k(normal(3, 6, seed=4), 3)
    for signed in (True, False):
        rows = RowCodes.empty(x, 3, signed=signed)
        rows.values.copy_(codes.values)
        rows.indices.copy_(codes.indices)
        rows.decode(x, Decoder(W, scale, bias, W), factor=0.7)
        residual, gradient = reference.decode_residual(x, codes, scale[:, None] * W, bias, 0.7)
        assert_near(rows.residual.residual, residual)
        assert_near(rows.residual.errors.sum((1, 2)), residual.pow(2).sum(1))
        kept = torch.ones_like(gradient) if signed else codes.values > 0
        assert_near(rows.residual.gradient, (gradient * kept).flatten())
