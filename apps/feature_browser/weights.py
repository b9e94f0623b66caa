"""The decoder of a run, read from its weights file with numpy alone."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from safetensors import SafetensorError, safe_open

from saelab.config import UsageError


@dataclass(frozen=True)
class Decoder:
    """Decoder rows of unit length, and the lengths they had; a zero row stays zero.

    Attributes:
        signed: codes have both signs, so a row and its opposite are the same direction.
    """

    rows: Float[ndarray, "latent d_in"]
    norms: Float[ndarray, " latent"]
    signed: bool


def read_decoder(path: Path, *, signed: bool) -> Decoder:
    """`W_dec` of the weights file at `path`.

    Raises:
        UsageError: the file is missing, damaged, or holds no decoder that numpy can read.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            W_dec = np.asarray(file.get_tensor("W_dec"), dtype=np.float32)
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        raise UsageError(f"The decoder in {path} cannot be read: {error}.") from error
    if W_dec.ndim != 2 or not W_dec.size or not np.isfinite(W_dec).all():
        raise UsageError(f"The decoder in {path} is not a matrix of finite numbers.")
    norms = np.linalg.norm(W_dec, axis=1)
    return Decoder(W_dec / np.maximum(norms, 1e-12)[:, None], norms, signed)


def width(path: Path) -> tuple[int, int]:
    """How many rows the decoder in the weights file at `path` has, and how many columns.

    Raises:
        UsageError: the file is missing, damaged, or holds no decoder.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            n, d_in = file.get_slice("W_dec").get_shape()
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        raise UsageError(f"The decoder in {path} cannot be read: {error}.") from error
    return n, d_in
