"""The decoder of a run, read from its weights file with numpy alone, and how rows compare."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from safetensors import SafetensorError, safe_open

from saelab.config import UsageError

CELLS_AT_ONCE = 2**22
"""Cosines held at a time: 16 MiB."""


@dataclass(frozen=True)
class Decoder:
    """Decoder rows of unit length, and the lengths they had; a zero row stays zero.

    Attributes:
        signed: codes have both signs, so a row and its opposite are the same direction.
    """

    rows: Float[ndarray, "latent d_in"]
    norms: Float[ndarray, " latent"]
    signed: bool


@dataclass(frozen=True)
class Nearest:
    """Of each row, the row of another decoder with the highest cosine.

    For signed codes cosines are compared, and given, without their sign.
    """

    row: Int[ndarray, " latent"]
    cosine: Float[ndarray, " latent"]


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


def nearest(this: Decoder, other: Decoder, *, itself: bool = False) -> tuple[Nearest, Nearest]:
    """Each row's nearest in the other decoder, both ways, block by block.

    With `itself` the two are one decoder, and a row is not its own neighbour.
    """
    n, m = len(this.rows), len(other.rows)
    block = max(1, CELLS_AT_ONCE // m)
    across = Nearest(np.zeros(n, np.int64), np.full(n, -np.inf, np.float32))
    back = Nearest(np.zeros(m, np.int64), np.full(m, -np.inf, np.float32))
    for start in range(0, n, block):
        cosines = this.rows[start : start + block] @ other.rows.T
        if this.signed or other.signed:
            cosines = np.abs(cosines)
        if itself:
            cosines[np.arange(len(cosines)), start + np.arange(len(cosines))] = -np.inf
        part = slice(start, start + len(cosines))
        across.row[part], across.cosine[part] = cosines.argmax(axis=1), cosines.max(axis=1)
        best = cosines.max(axis=0)
        better = best > back.cosine
        back.row[better] = start + cosines.argmax(axis=0)[better]
        back.cosine[better] = best[better]
    return across, back
