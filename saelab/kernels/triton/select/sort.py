# ruff: noqa: ANN001, ANN201, ANN202, SIM108 - Triton functions take tensors of any shape, which have no type.
"""A bitonic sorting network inside a kernel, for small sorts."""

from typing import no_type_check

import triton
import triton.language as tl


@triton.constexpr_function
def _log2(n):
    return n.bit_length() - 1


@triton.constexpr_function
def _cube(n):
    """The shape of n keys as axes of length 2: bit i of an index is axis log2(n) - 1 - i."""
    return [2] * (n.bit_length() - 1)


@triton.constexpr_function
def _one_axis(n_axes, bit):
    """The shape that varies along one bit only."""
    return [2 if axis == n_axes - 1 - bit else 1 for axis in range(n_axes)]


@triton.jit
@no_type_check
def _merge(cube, bits: tl.constexpr):
    """Sort bitonic runs of 2^bits keys: alternately up and down; a single run down."""
    n_axes: tl.constexpr = len(cube.shape)
    if bits < n_axes:
        down = tl.reshape(tl.arange(0, 2), _one_axis(n_axes, bits))
    else:
        down = 1
    for done in tl.static_range(bits):
        # Of two keys whose indices differ in one bit, the later takes the larger in an ascending
        # run.
        later = tl.reshape(tl.arange(0, 2), _one_axis(n_axes, bits - 1 - done))
        partner = tl.sum(cube, n_axes - bits + done, keep_dims=True) - cube
        takes_larger = (later ^ down) == 1
        cube = tl.where(takes_larger, tl.maximum(cube, partner), tl.minimum(cube, partner))
    return cube


@triton.jit
@no_type_check
def descending(keys, N: tl.constexpr):
    """N integer keys, largest first; N is a power of two, at least 2."""
    cube = tl.reshape(keys, _cube(N))
    for stage in tl.static_range(1, _log2(N) + 1):
        cube = _merge(cube, stage)
    return tl.reshape(cube, [N])
