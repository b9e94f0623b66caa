"""JumpReLU's entries against the dense definition, under the interpreter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.triton_device import DEVICE

from saelab.kernels.triton.select.scan import BLOCK, Entries, Scan

WIDTH = 0.5


def rows(batch, m, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    pre_acts = torch.randn(batch, m, generator=generator).to(DEVICE, dtype)
    return pre_acts, torch.rand(m, generator=generator).to(DEVICE)


def found(pre_acts, thresholds, room=None, shift=0):
    scan = Scan.empty(len(pre_acts), len(thresholds), WIDTH, pre_acts.device)
    scan.count(pre_acts, thresholds)
    n = int(scan.total)
    empty = torch.full((n if room is None else room,), -1, dtype=torch.int32, device=DEVICE)
    out = Entries(empty.float(), empty.clone(), empty.clone(), empty.clone())
    scan.write(pre_acts, thresholds, out, shift)
    return scan, n, out


def by_torch(pre_acts, thresholds):
    a = pre_acts.float()
    on = a > thresholds
    row, latent = (on | ((a - thresholds).abs() < WIDTH / 2)).nonzero(as_tuple=True)
    on = on[row, latent]
    values = torch.where(on, a[row, latent], 0.0)
    keys = torch.where(on, latent, latent + len(thresholds))
    return Entries(values, latent.int(), row.int(), keys.int())


@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 20),
    m=st.sampled_from([1, 5, 31, 32, 33, 100, 1024, 1100]),
    seed=st.integers(0, 9),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_every_entry_on_or_in_the_window_is_written_in_order(batch, m, seed, dtype):
    pre_acts, thresholds = rows(batch, m, seed, dtype)
    scan, n, out = found(pre_acts, thresholds)
    expected = by_torch(pre_acts, thresholds)
    assert n == len(expected.values)
    for ours, theirs in zip(out, expected, strict=True):
        assert torch.equal(ours, theirs)
    starts = torch.bincount(expected.rows, minlength=batch).cumsum(0)
    assert torch.equal(scan.starts[1:], starts.int())


def test_full_and_empty_blocks_and_the_window_s_edges_are_exact():
    pre_acts = torch.full((3, 1100), -9.0, device=DEVICE)
    pre_acts[1] = 9.0
    # 0.25 off is outside an open window of 0.5; a latent at its threshold is off and inside.
    pre_acts[2, :4] = torch.tensor([0.25, 0.25001, 0.5, 0.75])
    thresholds = torch.full((1100,), 0.5, device=DEVICE)
    _, n, out = found(pre_acts, thresholds)
    assert n == 1103
    assert torch.equal(out.indices[:1100].cpu(), torch.arange(1100, dtype=torch.int32))
    assert out.indices[1100:].tolist() == [1, 2, 3]
    assert out.values[1100:].tolist() == [0.0, 0.0, 0.75]
    assert out.keys[1100:].tolist() == [1101, 1102, 3]


def test_nan_is_no_entry_and_infinity_is():
    pre_acts = torch.tensor([[float("nan"), float("inf"), -float("inf"), 2.0]], device=DEVICE)
    _, n, out = found(pre_acts, torch.zeros(4, device=DEVICE))
    assert n == 2
    assert out.values.tolist() == [float("inf"), 2.0]


@pytest.mark.parametrize("shift", [0, 2**15])
def test_room_that_is_left_over_has_zeros_and_keys_that_go_last(shift):
    pre_acts, thresholds = rows(4, 40, 0)
    _, n, out = found(pre_acts, thresholds, room=BLOCK + 3, shift=shift)
    assert n < BLOCK
    expected = by_torch(pre_acts, thresholds)
    assert torch.equal(out.keys[:n], expected.keys - shift)
    assert (out.keys[n:] == 2 * 40 - 1 - shift).all()
    assert (out.values[n:] == 0).all()
