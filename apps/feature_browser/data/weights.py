"""The decoder of a run, read from its weights file with numpy alone."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from saelab.formats.tensor_header import read_matrix, read_tensor_header


@dataclass(frozen=True)
class DecoderRows:
    """Decoder rows of unit length, and the lengths they had; a zero row stays zero.

    Attributes:
        signed: codes have both signs, so a row and its opposite are the same direction.
    """

    rows: Float[ndarray, "latent d_in"]
    norms: Float[ndarray, " latent"]
    signed: bool


def read_decoder(path: Path, *, signed: bool) -> DecoderRows:
    """`W_dec` of the weights file at `path`.

    Raises:
        UsageError: the file is missing, damaged, or holds no decoder that numpy can read.
    """
    W_dec = read_matrix(read_tensor_header(path), "W_dec")
    norms = np.linalg.norm(W_dec, axis=1)
    return DecoderRows(W_dec / np.maximum(norms, 1e-12)[:, None], norms, signed)


def width(path: Path) -> tuple[int, int]:
    """How many rows the decoder in the weights file at `path` has, and how many columns.

    Raises:
        UsageError: the file is missing, damaged, or holds no decoder.
    """
    return read_tensor_header(path).matrix_shape("W_dec")
