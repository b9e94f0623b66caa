"""Stochastic rounding to bfloat16: right on average, and what it is for."""

from typing import no_type_check

import pytest
import torch
import triton
import triton.language as tl
from kernels.triton_device import DEVICE
from torch.nn import functional as F

from saelab.kernels.triton.step.rounding import random_words, stochastic_round

N, BLOCK = 256, 4096
LARGEST = torch.finfo(torch.bfloat16).max
EXACT = [0.0, -0.0, 1.0, -3.5, LARGEST, -LARGEST, torch.inf, -torch.inf, 2.0**-133, -(2.0**-126)]


@triton.jit
@no_type_check
def _words_kernel(step, seed, first, every, out, latent, chunk, COLUMNS: tl.constexpr):
    draw = step, seed, first, every
    first, second = random_words(draw, latent, chunk, COLUMNS)
    at = tl.arange(0, COLUMNS)
    tl.store(out + at, first.to(tl.int32, bitcast=True))
    tl.store(out + COLUMNS + at, second.to(tl.int32, bitcast=True))


@triton.jit
@no_type_check
def _round_kernel(x, words, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(words + at, mask=at < n, other=0).to(tl.uint32, bitcast=True)
    value = tl.load(x + at, mask=at < n, other=0.0)
    tl.store(out + at, stochastic_round(value, word), mask=at < n)


def words(seed=3, step=1, latent=0, chunk=0, first=0, every=1):
    out = torch.empty(2 * N, dtype=torch.int32, device=DEVICE)
    count = torch.tensor([float(step)], dtype=torch.float64, device=DEVICE)
    _words_kernel[(1,)](count, seed, first, every, out, latent, chunk, COLUMNS=N)
    return out.cpu()


def rounded(x, words):
    x, out = x.to(DEVICE), torch.empty(len(x), dtype=torch.bfloat16, device=DEVICE)
    n = len(x)
    _round_kernel[(-(-n // BLOCK),)](x, words.to(DEVICE, torch.int32), out, n, BLOCK=BLOCK)
    return out.cpu()


def every(x):
    """A number rounded by each of the 2^16 halves of a word."""
    return rounded(torch.full((1 << 16,), x), torch.arange(1 << 16))


@pytest.mark.parametrize("x", [1.001, -1.001, 3e-39, -0.3, 1e-40, 3.1e38])
def test_the_mean_over_all_halves_of_a_word_is_the_number_to_the_last_bit(x):
    x = float(torch.tensor(x))
    found = every(x)
    near = torch.tensor(x).bfloat16()
    assert len(found.unique()) == 2
    assert near in found
    assert float(found.double().mean()) == x


@pytest.mark.parametrize("x", EXACT)
def test_what_bfloat16_has_is_left_as_it_is(x):
    bits = every(x).view(torch.int16).unique()
    assert bits.tolist() == [int(torch.tensor(x).bfloat16().view(torch.int16))]


def test_what_is_finite_stays_finite_and_nan_stays_nan():
    most = torch.finfo(torch.float32).max
    for sign in (1, -1):
        assert every(sign * most).unique().tolist() == [sign * LARGEST]
        # The last number between the two largest, and the first one beyond.
        edge = torch.tensor(LARGEST)
        inner = float(torch.nextafter(edge, torch.tensor(0.0)))
        assert float(every(sign * inner).abs().max()) == LARGEST
        outer = float(torch.nextafter(edge, torch.tensor(most)))
        assert every(sign * outer).unique().tolist() == [sign * LARGEST]
    assert every(torch.nan).isnan().all()
    filled = torch.tensor([0x7FFFFFFF, 0x7FC00001], dtype=torch.int32).view(torch.float32)
    for noise in (0, 0xFFFF):
        assert rounded(filled, torch.full((2,), noise)).isnan().all()


def test_only_the_lower_half_of_a_word_counts():
    x, low = torch.full((4,), 1.001), torch.tensor([0, 1, 0x8000, 0xFFFF])
    high = torch.tensor([0x7FFF0000, -0x10000, 0x10000, 0])
    assert torch.equal(rounded(x, low), rounded(x, (low + high).int()))


def test_words_are_uniform_and_others_for_each_seed_step_latent_and_column():
    places = [{}, {"seed": 4}, {"step": 2}, {"latent": 1}, {"chunk": 1}, {"seed": 2**32 - 1}]
    found = torch.stack([words(**place) for place in places])
    assert torch.equal(found[0], words())
    assert len(found.unique()) == found.numel()  # By chance one in 900 draws has a pair.
    halves = torch.cat([found & 0xFFFF, (found >> 16) & 0xFFFF]).double() / 2**16
    n = halves.numel()
    assert abs(float(halves.mean()) - 0.5) < 4 / (12 * n) ** 0.5
    assert float(halves.var()) == pytest.approx(1 / 12, rel=0.05)
    both = torch.stack([halves[: len(found)].flatten(), halves[len(found) :].flatten()])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 4 / n**0.5


def test_a_latent_has_the_same_words_in_any_process():
    assert torch.equal(words(latent=7), words(latent=2, first=1, every=3))


def test_a_second_moment_decays_on_average_where_the_nearest_neighbour_stands_still():
    """v = 0.999 v for 1,000 steps, which leave 0.368 of it."""
    decay, n, steps = 0.999, 512, 1000
    start = torch.full((n,), 1.3).bfloat16()
    nearest = at_random = start
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        nearest = (decay * nearest.float()).bfloat16()
        halves = torch.randint(1 << 16, (n,), generator=generator)
        at_random = rounded(decay * at_random.float(), halves)
    assert torch.equal(nearest, start)
    wanted, found = float(start[0]) * decay**steps, at_random.double()
    uncertain = float(found.std()) / n**0.5
    assert uncertain < 0.005 * wanted
    assert float(found.mean()) == pytest.approx(wanted, abs=4 * uncertain)


def test_an_sae_trains_as_well_with_rounded_moments():
    """By torch's Adam, TopK on planted rows: after 200 steps the error is within 1 %."""
    shape, k, steps = (32, 16), 3, 200
    found = []
    for keeps in (True, False):
        generator = torch.Generator().manual_seed(0)
        atoms = F.normalize(torch.randn(shape, generator=generator), dim=1)
        start = F.normalize(torch.randn(shape, generator=generator), dim=1)
        W_enc, W_dec = (torch.nn.Parameter(start.clone()) for _ in range(2))
        optimizer, errors = torch.optim.Adam([W_enc, W_dec], lr=3e-3, eps=6.25e-10), []
        halves = torch.Generator().manual_seed(1)
        for _ in range(steps):
            on = torch.rand(64, len(atoms), generator=generator).argsort(dim=1) < k
            x = (on * (0.5 + torch.rand(on.shape, generator=generator))) @ atoms
            top = (x @ W_enc.T).topk(k)
            z = torch.zeros(on.shape).scatter(1, top.indices, top.values.relu())
            error = (z @ W_dec - x).square().sum() / x.square().sum()
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            errors.append(float(error.detach()))
            for state in () if keeps else optimizer.state.values():
                for moment in (state["exp_avg"], state["exp_avg_sq"]):
                    word = torch.randint(1 << 16, (moment.numel(),), generator=halves)
                    moment.copy_(rounded(moment.flatten(), word).view(shape))
        assert sum(errors[-20:]) < 0.6 * sum(errors[:20])
        found.append(sum(errors[-20:]))
    assert found[1] != found[0]
    assert found[1] == pytest.approx(found[0], rel=0.01)
