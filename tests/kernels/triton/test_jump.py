"""JumpReLU's codes by latent, and the sums over the window, against dense torch."""

from dataclasses import replace

import torch
from kernels.triton_device import DEVICE

from saelab.kernels.triton.codes.jump import JumpCodes, JumpRules
from saelab.kernels.triton.select.rows import PreActs
from saelab.kernels.triton.weights import Parameter, Weights

BATCH, D_IN, D_SAE, WIDTH = 6, 3, 7, 0.6


def filled(room=64):
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.randn(D_SAE, D_IN, generator=generator).to(DEVICE)
    thresholds = torch.rand(D_SAE, generator=generator).to(DEVICE)
    zeros = W_dec.new_zeros(D_SAE), W_dec.new_zeros(D_IN)
    weights = Weights.start(W_dec.T.clone(), zeros[0], W_dec, zeros[1], torch.float32)
    weights = replace(weights, thresholds=Parameter.of(thresholds, torch.float32))
    x = torch.randn(BATCH, D_IN, generator=generator).to(DEVICE)
    pre_acts = torch.randn(BATCH, D_SAE, generator=generator).to(DEVICE)
    codes = JumpCodes.empty(x, D_SAE, JumpRules(WIDTH, None)).with_room(room)
    codes.scan.count(pre_acts, thresholds)
    codes.select(PreActs(pre_acts), weights)
    codes.decode(x, weights.dictionary, factor=0.5)
    return codes, pre_acts, x, weights


def test_the_gradient_of_what_is_off_in_the_window_is_that_of_a_code():
    codes, pre_acts, x, weights = filled()
    n, atoms = int(codes.scan.total), weights.scale[:, None] * weights.dec.value
    z = pre_acts * (pre_acts > weights.learned.value)
    residual = z @ atoms - x
    torch.testing.assert_close(codes.residual.residual, residual)
    slopes = 0.5 * residual @ atoms.T
    at = codes.error_rows[:n].long(), codes.indices[:n].long()
    assert (codes.values[:n] == 0).any()
    torch.testing.assert_close(codes.residual.gradient[:n], slopes[at])
    torch.testing.assert_close(codes.values[:n], z[at])


def test_the_reconstruction_reads_no_atom_of_an_entry_that_is_off():
    codes, pre_acts, x, weights = filled()
    known, off = codes.residual.residual.clone(), codes.values[: int(codes.scan.total)] == 0
    latent = codes.indices[: len(off)][off][0].long()
    W = weights.dec.copy.clone()
    W[latent] = torch.nan
    codes.decode(x, weights.dictionary._replace(W=W), factor=0.5)
    on = (pre_acts > weights.learned.value)[:, latent]
    assert torch.equal(codes.residual.residual.isnan().all(1), on)
    assert torch.equal(codes.residual.residual[~on], known[~on])


def test_pairs_that_are_on_come_first_and_those_left_over_belong_to_no_latent():
    for room in (64, 36):
        codes, pre_acts, _, weights = filled(room)
        pairs = codes.invert(D_SAE)
        on = pre_acts > weights.learned.value
        near = (pre_acts - weights.learned.value).abs() < WIDTH / 2
        assert torch.equal(pairs.offsets.diff().long(), on.sum(0))
        off = pairs.both[D_SAE:].diff().long()
        assert torch.equal(off, (near & ~on).sum(0))
        assert int(pairs.both[-1]) == int(codes.scan.total)
        latents = codes.indices[pairs.order[: int(pairs.offsets[-1])]]
        assert torch.equal(latents, latents.sort().values)


def test_the_sums_over_the_window_are_those_of_the_dense_definition():
    codes, pre_acts, x, weights = filled()
    thresholds, atoms = weights.learned.value, weights.scale[:, None] * weights.dec.value
    near = (pre_acts - thresholds).abs() < WIDTH / 2
    slopes = 0.5 * ((pre_acts * (pre_acts > thresholds)) @ atoms - x) @ atoms.T
    sums, number = codes.window_sums(codes.invert(D_SAE), thresholds)
    torch.testing.assert_close(sums, (near * slopes).sum(0))
    assert torch.equal(number, near.sum(0).float())
