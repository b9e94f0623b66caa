"""Small texts with known codes, on disk as the pass writes them and dense to compare with."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from saelab.analysis.features.codes import (
    SHARD,
    ContextBlock,
    Events,
    Piece,
    RecordedCodes,
    write_shard,
)

D_VOCAB = 9


@dataclass(frozen=True)
class Case:
    """`dense` and `near` are `[context pos latent]`, zero where nothing is; `mask` has the rows."""

    dense: np.ndarray
    near: np.ndarray
    mask: np.ndarray
    tokens: np.ndarray
    codes: RecordedCodes

    @property
    def rows(self) -> np.ndarray:
        """The dense codes of every row."""
        return self.dense[self.mask]


def random_case(
    directory: Path, seed: int, *, cuts: tuple[int, ...] = (5,), d_sae: int = 6, rate: float = 0.3
) -> Case:
    """Twelve contexts of seven positions, the first never a row; latent 0 is always silent."""
    draw = np.random.default_rng(seed)
    shape = (12, 7, d_sae)
    # Few distinct values, so that there are ties.
    value = (draw.integers(1, 12, shape) / 4).astype(np.float32) * draw.choice([-1, 1], shape)
    uniform = draw.random(shape)
    mask = np.ones(shape[:2], dtype=bool)
    mask[:, 0] = False
    mask[draw.integers(0, 12), 3:] = False
    own_rate = rate * np.linspace(0, 1.6, d_sae)
    dense = np.where(uniform < own_rate, value, 0).astype(np.float32) * mask[:, :, None]
    near = np.where(uniform > 0.8, value / 8, 0).astype(np.float32) * mask[:, :, None]
    near[dense != 0] = 0
    tokens = draw.integers(0, D_VOCAB, shape[:2])
    return write_case(directory, dense, near, mask, tokens, cuts)


def write_case(
    directory: Path,
    dense: np.ndarray,
    near: np.ndarray,
    mask: np.ndarray,
    tokens: np.ndarray,
    cuts: tuple[int, ...] = (),
) -> Case:
    """A shard for the contexts up to each of `cuts`, two pieces each."""
    ends = [0, *cuts, len(dense)]
    for i, (first, last) in enumerate(pairwise(ends)):
        middle = (first + last) // 2
        pieces = [piece(dense, near, mask, part) for part in ((first, middle), (middle, last))]
        text = ContextBlock(tokens[first:last], np.arange(first, last) * 10)
        write_shard(directory / SHARD.format(i), pieces, [text], dense.shape[2])
    return Case(dense, near, mask, tokens, RecordedCodes(directory))


def piece(dense: np.ndarray, near: np.ndarray, mask: np.ndarray, part: tuple[int, int]) -> Piece:
    first, last = part
    here = mask[first:last]
    context, position = here.nonzero()
    place = (context + first) * mask.shape[1] + position
    fired, missed = dense[first:last][here], near[first:last][here]
    return Piece(place, events(fired), events(missed, closeness=True))


def tensors(*columns: np.ndarray) -> list[torch.Tensor]:
    """The fields of `Events`, from integers and floats of any width."""
    kinds = {"i": torch.int32, "f": torch.float32}
    return [torch.as_tensor(column, dtype=kinds[column.dtype.kind]) for column in columns]


def events(rows: np.ndarray, *, closeness: bool = False) -> Events:
    row, latent = rows.nonzero()
    value = rows[row, latent]
    return Events(*tensors(row, latent, value, *([np.abs(value)] if closeness else [])))
