"""The selection over a whole batch against a stable sort of it, under the interpreter."""

from typing import no_type_check

import hypothesis.strategies as st
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from kernels.triton_device import DEVICE

import saelab.kernels.triton.select.batch as module
from saelab.kernels.triton.select.batch import FlatPlace, select_batch_top_k
from saelab.kernels.triton.select.digits import share_of_rows


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mostly_ones(*shape, above):
    """Ones, but for larger numbers at the last `above` places and smaller ones at the first."""
    x = torch.ones(shape)
    x.view(-1)[:above] = -normal(above).abs()
    x.view(-1)[-above:] += normal(above).abs()
    return x


# Rows that are listed and read in several steps.
LONG_ROWS = torch.cat([normal(1, 1100, seed=2) - 9, normal(1, 1100, seed=2) + 9])
CASES = {
    "random": (normal(5, 150), 12),
    "more than there are segments": (normal(3, 150), 40),
    "all": (normal(2, 70), 140),
    "one": (normal(4, 64), 1),
    "equal": (torch.ones(4, 70), 9),
    "ties": (normal(6, 130).round(), 30),
    "one row has all": (torch.cat([normal(1, 130) + 9, normal(4, 130)]), 20),
    "few are positive": (-normal(4, 130).abs() + 1.5, 200),
    "more segments tie than are needed": (torch.ones(9, 130), 13),
    "all tie": (torch.ones(2, 1100), 2200),
    "all but few tie": (mostly_ones(9, 130, above=7), 20),
    "all but few tie, and most are wanted": (mostly_ones(3, 130, above=7), 385),
    "many rows of ties": (normal(9, 150, seed=1).round(), 20),
    "one long row has all": (LONG_ROWS, 36),
    "a long row's segments tie": (LONG_ROWS.sign(), 25),
    "one entry of each segment ties": (1.0 * (torch.arange(192) % 64 == 5).expand(5, -1), 8),
    "infinite": (torch.tensor([[float("inf"), -float("inf"), 0.0, 1.0] * 20] * 3), 50),
}


def expected(x, n, *, signed):
    flat = x.flatten()
    size = (flat.abs() if signed else flat).float()
    chosen = size.sort(descending=True, stable=True).indices[:n].sort().values
    values = flat[chosen].float() if signed else flat[chosen].float().relu()
    starts = torch.searchsorted(chosen, torch.arange(len(x)) * x.shape[1])
    return values, chosen % x.shape[1], starts


def check(x, n, *, signed):
    found = select_batch_top_k(x.to(DEVICE), n, by_magnitude=signed)
    for ours, theirs in zip(found, expected(x, n, signed=signed), strict=True):
        torch.testing.assert_close(ours.cpu().to(theirs.dtype), theirs, rtol=0, atol=0)
    return found


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("signed", "dtype"), [(False, torch.float32), (True, torch.float32), (False, torch.bfloat16)]
)
def test_it_keeps_what_a_stable_sort_of_the_batch_puts_first(case, signed, dtype, monkeypatch):
    # Few rows a program, so that small batches take several programs.
    monkeypatch.setattr(module, "ROWS", 4)
    x, n = CASES[case]
    check(x.to(dtype), n, signed=signed)


def test_negative_magnitudes_of_bfloat16_are_ranked_too():
    found = check(normal(4, 70, seed=3).bfloat16(), 17, signed=True)
    assert (found.values < 0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_positions_beyond_two_bytes_are_kept_whole(n, dtype):
    x = normal(2, 2**16 + 200, seed=4).to(dtype)
    x[1, -3:] = 9
    assert check(x, n, signed=False).indices[-1] == x.shape[1] - 1


def test_the_last_position_of_two_bytes_is_kept_whole():
    x = normal(1, 2**16, seed=5)
    x[0, -1] = 9
    assert check(x, 20, signed=False).indices[-1] == 2**16 - 1


@triton.jit
@no_type_check
def share_kernel(
    rows, totals, state, starts, wanted, block, blocks, batch, ROWS: tl.constexpr
):  # fmt: skip
    """The share of one block of rows, written out."""
    start, quota = share_of_rows(rows, totals, state, block, blocks, batch, ROWS)
    tl.store(starts + tl.arange(0, ROWS), start)
    tl.store(wanted + tl.arange(0, ROWS), quota)


@pytest.mark.parametrize("left", [0, 550, 552, 5000])
def test_a_row_starts_after_what_more_blocks_than_are_summed_at_once_have_kept(left):
    rows = torch.randint(0, 3, (2, 600), generator=torch.Generator().manual_seed(8)).int()
    state = torch.tensor([7, left], dtype=torch.int32)
    starts, wanted = (torch.zeros(2, dtype=torch.int32, device=DEVICE) for _ in range(2))
    totals = rows.view(2, 300, 2).sum(2).int()
    share_kernel[(1,)](
        rows.to(DEVICE), totals.to(DEVICE), state.to(DEVICE), starts, wanted, 290, 300, 600, ROWS=2
    )
    above, same = rows.long()
    kept = (left - (same.cumsum(0) - same)).clamp(min=0).minimum(same)
    assert torch.equal(wanted.cpu().long(), kept[580:582])
    assert torch.equal(starts.cpu().long(), ((above + kept).cumsum(0) - above - kept)[580:582])


def test_each_entry_is_told_its_group_of_latents():
    x, n, lows = normal(5, 150, seed=7), 60, torch.tensor([0, 40, 90], dtype=torch.int32)
    out = FlatPlace.empty(n, torch.device(DEVICE))._replace(lows=lows.to(DEVICE))
    found = select_batch_top_k(x.to(DEVICE), n, out=out)
    chosen = x.flatten().sort(descending=True).indices[:n].sort().values
    group = torch.searchsorted(lows, chosen % 150, right=True) - 1
    assert found.values.data_ptr() == out.values.data_ptr()
    assert torch.equal(out.rows.cpu().long(), chosen // 150 * 3 + group)


@given(st.data())
@settings(max_examples=8, deadline=None)
def test_any_shape_any_rank_and_any_ties_agree_with_the_sort(data):
    batch, m = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 200))
    n = data.draw(st.integers(1, batch * m))
    steps = data.draw(st.sampled_from([1, 2, 100]))
    x = (normal(batch, m, seed=data.draw(st.integers(0, 99))) * steps).round() / steps
    bfloat16, signed = data.draw(st.booleans()), data.draw(st.booleans())
    check(x.bfloat16() if bfloat16 else x, n, signed=signed)
