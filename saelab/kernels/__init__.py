"""Sparse linear algebra. `reference` says what each operation means; the rest makes it fast."""

from saelab.kernels.affine import affine_codes
from saelab.kernels.gather import sparse_decode
from saelab.kernels.nested import nested_errors

__all__ = ["affine_codes", "nested_errors", "sparse_decode"]
