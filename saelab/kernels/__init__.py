"""Sparse linear algebra: `reference` defines each operation, the other modules make it fast."""

from saelab.kernels.torch.affine import affine_codes
from saelab.kernels.torch.gather import sparse_decode
from saelab.kernels.torch.nested import nested_errors

__all__ = ["affine_codes", "nested_errors", "sparse_decode"]
