"""Whole-number helpers for launching kernels."""


def ceil_div(a: int, b: int) -> int:
    """How many pieces of b it takes to cover a."""
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The least power of two that is at least n, and at least 1."""
    return 1 << max(0, n - 1).bit_length()
