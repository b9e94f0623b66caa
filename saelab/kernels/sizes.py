"""Whole-number helpers for launching kernels."""


def ceil_div(a: int, b: int) -> int:
    """The quotient a / b, rounded up."""
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest power of two >= n, and >= 1."""
    return 1 << max(0, n - 1).bit_length()
