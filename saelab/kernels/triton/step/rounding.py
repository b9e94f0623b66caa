# ruff: noqa: ANN001, ANN201 - Triton kernels take pointers, which have no Python type.
"""Stochastic rounding of float32 to bfloat16: up or down, so that the mean is the number itself.

Adam's second moment decays by a thousandth per step, and neighbours in bfloat16 are at least a
256th apart: rounded to the nearest it would never decay. Rounded at random it does on average
(arXiv 1502.02551).
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl

ROUNDS = tl.constexpr(7)
"""The fewest with which Philox4x32 passes BigCrush (Salmon et al., SC 2011)."""
LARGEST = tl.constexpr(torch.finfo(torch.bfloat16).max)


@triton.jit
@no_type_check
def random_words(draw, latent, chunk, COLUMNS: tl.constexpr):
    """Two random words of 32 bits for each column of a latent's chunk; others in every step.

    `draw` is where the number of the step is in memory, the seed, and the first and the distance of
    this process's latents among all, so that any number of processes draws the same. The step is
    read from memory as a CUDA graph repeats its launches with the arguments it was recorded with.
    Two columns share a call of the generator, which makes four words.
    """
    step, seed, first, every = draw
    pair = chunk * (COLUMNS // 2) + tl.arange(0, COLUMNS // 2)
    number = tl.load(step).to(tl.int32)
    a, b, c, d = tl.philox(seed, pair, first + every * latent, number, 0, ROUNDS)
    return tl.interleave(a, b), tl.interleave(c, d)


@triton.jit
@no_type_check
def stochastic_round(x, word):
    """One of x's two neighbours in bfloat16, chosen by the lower 16 bits of a random word.

    The farther from zero has probability (|x| - nearer) / (farther - nearer). Beyond the largest
    number the nearer is taken, so that what is finite stays finite. NaN stays NaN: the highest
    bit of its fraction, which all arithmetic sets, is kept.
    """
    bits = x.to(tl.uint32, bitcast=True)
    moved = tl.where(tl.abs(x) < LARGEST, bits + (word & 0xFFFF), bits)
    return (moved >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
