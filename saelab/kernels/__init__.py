"""Sparse linear algebra. `reference` says what each operation means; the rest makes it fast."""

from saelab.kernels.torch.affine import affine_codes
from saelab.kernels.torch.gather import sparse_decode
from saelab.kernels.torch.nested import nested_errors

__all__ = ["affine_codes", "nested_errors", "sparse_decode"]
