"""Sparse linear algebra. `reference` says what each operation means; the rest makes it fast."""

from saelab.kernels.gather import sparse_decode

__all__ = ["sparse_decode"]
