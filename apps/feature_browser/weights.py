"""The decoder of a run, read from its weights file with numpy alone, and how rows compare."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from safetensors import SafetensorError, safe_open

from saelab.config import UsageError

TILE = 1024
"""Rows and columns of the cosines held at a time: 4 MiB, which stay in the processor's cache."""


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


def nearest(
    this: Decoder,
    other: Decoder,
    *,
    itself: bool = False,
    report: Callable[[float], None] = lambda share: None,
) -> tuple[Nearest, Nearest]:
    """Each row's nearest in the other decoder, both ways, tile by tile.

    With `itself` the two are one decoder, and a row is not its own neighbour. `report` is told the
    share that is done.
    """
    n, m = len(this.rows), len(other.rows)
    across = Nearest(np.zeros(n, np.int64), np.full(n, -np.inf, np.float32))
    back = Nearest(np.zeros(m, np.int64), np.full(m, -np.inf, np.float32))
    for top in range(0, n, TILE):
        for left in range(0, m, TILE):
            cosines = this.rows[top : top + TILE] @ other.rows[left : left + TILE].T
            if this.signed or other.signed:
                np.abs(cosines, out=cosines)
            if itself and top == left:
                np.fill_diagonal(cosines, -np.inf)
            _improve(across, cosines, top, left)
            _improve(back, cosines.T, left, top)
        report(min(n, top + TILE) / n)
    return across, back


def _improve(found: Nearest, cosines: Float[ndarray, "row column"], top: int, left: int) -> None:
    """Take in a tile that begins at row `top` and column `left`."""
    best = cosines.max(axis=1)
    # Where a maximum stands is slow to find; after a few tiles few rows have a new one.
    better = np.flatnonzero(best > found.cosine[top : top + len(best)])
    found.row[top + better] = left + cosines[better].argmax(axis=1)
    found.cosine[top + better] = best[better]
