"""Whole-number helpers for launching kernels."""

GRAM_LATENTS = 2**15
"""Largest number of correlations that the registers of one program hold: 128 KiB in float32."""


def ceil_div(a: int, b: int) -> int:
    """The quotient a / b, rounded up."""
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest power of two >= n, and >= 1."""
    return 1 << max(0, n - 1).bit_length()


def segment_width(m: int) -> int:
    """Entries in a segment of a row of m, as selection cuts it.

    Wider segments are fewer, but more of them is read again. There are at most 2^15, since a
    program counts all of a row's segments in 16 bits.
    """
    return 64 if m <= 2**16 else max(128, power_of_two(m) // 2**15)


def segments(m: int) -> int:
    """Into how many segments a row of m entries is cut."""
    return ceil_div(m, segment_width(m))


def fits_batch_select(batch: int, m: int, n: int) -> bool:
    """Whether the selection of n of `batch` rows of m entries counts to less than 2^31.

    The rows themselves may have more entries. The selection counts their segments, and the entries
    of the n best ones. With fewer segments than n it counts all entries.
    """
    width, n_segments = segment_width(m), batch * segments(m)
    return n_segments < 2**31 and (n * width if n <= n_segments else batch * m) < 2**31


def gram_pays(batch: int, d_sae: int, n_steps: int, *, rounds: bool) -> bool:
    """Whether a pursuit's Gram matrix fits beside kernels and costs less than what it replaces.

    Reading one of its rows takes no longer than the product of a row and all atoms. If products
    round, it is in half the bytes.
    """
    widest = GRAM_LATENTS if rounds else GRAM_LATENTS // 2
    return d_sae <= min(widest, (n_steps - 1) * batch)
