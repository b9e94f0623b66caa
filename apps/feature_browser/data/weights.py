"""The decoder of a run, read from its weights file with numpy alone."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from saelab.config import UsageError
from saelab.formats.tensor_header import TensorHeader, read_matrix, read_tensor_header


@dataclass(frozen=True)
class DecoderRows:
    """Decoder rows of unit length, and the lengths they had; a zero row stays zero.

    Attributes:
        signed: whether codes have both signs, so that a row and its opposite are the same
            direction.
    """

    rows: Float[ndarray, "latent d_in"]
    norms: Float[ndarray, " latent"]
    signed: bool


def read_decoder(path: Path, *, signed: bool) -> DecoderRows:
    """`W_dec` of the weights file at `path`.

    Raises:
        UsageError: the file is missing, damaged, or holds no decoder that numpy can read.
    """
    W_dec = read_matrix(_with_decoder(path), "W_dec")
    norms = np.linalg.norm(W_dec, axis=1)
    return DecoderRows(W_dec / np.maximum(norms, 1e-12)[:, None], norms, signed)


def width(path: Path) -> tuple[int, int]:
    """The number of rows and columns of the decoder in the weights file at `path`.

    Raises:
        UsageError: the file is missing, damaged, or holds no decoder.
    """
    return _with_decoder(path).matrix_shape("W_dec")


def _with_decoder(path: Path) -> TensorHeader:
    header = read_tensor_header(path)
    if "W_left" in header.tensors:
        raise UsageError(
            f"The latents in {path} are quadratic forms, which have no decoder rows to compare."
        )
    return header
