"""Batches of generated tokens, made ahead of time by worker processes."""

import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Int, Int32
from torch import Tensor

from saelab.lm.tiny.grammar import generate_tokens

BATCHES_AHEAD = 8
"""Batches each worker may be ahead of the consumer."""


def _batch(seed: int, size: int, step: int) -> Int32[np.ndarray, "batch pos"]:
    return generate_tokens(seed, step * size, (step + 1) * size)


@contextmanager
def token_batches(
    seed: int, size: int, steps: range, workers: int
) -> Iterator[Iterator[Int[Tensor, "batch pos"]]]:
    """An iterator over the training batches of `steps`, in order, as int64 tensors.

    Batch s holds the training documents `s * size` to `(s + 1) * size - 1`. With 0 workers the
    batches are made when asked for.
    """
    if workers == 0:
        yield (_tensor(_batch(seed, size, step)) for step in steps)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context)
    try:
        yield _ahead(pool, seed, size, steps, workers * BATCHES_AHEAD)
    finally:
        pool.shutdown(cancel_futures=True)


def _ahead(
    pool: ProcessPoolExecutor, seed: int, size: int, steps: range, depth: int
) -> Iterator[Int[Tensor, "batch pos"]]:
    waiting: deque[Future[np.ndarray]] = deque()
    for step in steps:
        waiting.append(pool.submit(_batch, seed, size, step))
        if len(waiting) >= depth:
            yield _tensor(waiting.popleft().result())
    while waiting:
        yield _tensor(waiting.popleft().result())


def _tensor(tokens: Int32[np.ndarray, "batch pos"]) -> Int[Tensor, "batch pos"]:
    return torch.from_numpy(tokens).long()
