"""How well the order of an epoch mixes contexts.

Rows of one context resemble each other, so a batch with many rows of one context says less than as
many independent rows. The design effect is by how much that inflates the variance of a batch mean.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Integer

from saelab.activations.order import POOL_ROWS, EpochPlan
from saelab.activations.store import ActivationStore

WINDOW_BATCHES = 16
"""Batches over which an optimizer averages at the least."""


@dataclass(frozen=True)
class Mixing:
    """Design effects of the start of an epoch, and those of a full permutation of all rows.

    Attributes:
        batch: over single batches.
        window: over `WINDOW_BATCHES` consecutive batches.
        ideal_batch: a full permutation, single batches.
        ideal_window: a full permutation, `WINDOW_BATCHES` batches.
    """

    batch: float
    window: float
    ideal_batch: float
    ideal_window: float


def design_effect(contexts: Integer[np.ndarray, " row"], window: int, rho: float = 0.1) -> float:
    """Var(mean over `window` consecutive rows) / Var(mean of as many independent rows).

    For a random-effects model with correlation `rho` inside a context and none across:
    `1 - rho + rho * sum_g n_g^2 / n`, averaged over the windows of the order, where n_g rows of
    a window's n come from context g. Rows behind the last whole window are not looked at.
    """
    window = min(window, len(contexts))
    windows = contexts[: len(contexts) // window * window].reshape(-1, window)
    squares = [float((np.unique(rows, return_counts=True)[1] ** 2).sum()) for rows in windows]
    return 1 - rho + rho * float(np.mean(squares)) / window


def mixing(
    store: ActivationStore,
    *,
    batch_size: int = 4096,
    pool_rows: int = POOL_ROWS,
    rho: float = 0.1,
    seed: int = 0,
) -> Mixing:
    """Design effects of the batches that `ShuffledBatches` would serve first from this store.

    0.1 is the correlation inside a context that late layers of a small language model have
    (0.02 to 0.17 were measured).
    """
    contexts = served_contexts(store, WINDOW_BATCHES * batch_size, pool_rows=pool_rows, seed=seed)
    n_contexts = sum(len(store.manifest.unit_contexts(unit)) for unit in store.units)
    per_context = store.n_rows / n_contexts

    def ideal(n: int) -> float:
        n = min(n, store.n_rows)
        return 1 + rho * (n - 1) * (per_context - 1) / max(1, store.n_rows - 1)

    return Mixing(
        design_effect(contexts, batch_size, rho),
        design_effect(contexts, WINDOW_BATCHES * batch_size, rho),
        ideal(batch_size),
        ideal(WINDOW_BATCHES * batch_size),
    )


def served_contexts(
    store: ActivationStore, n_rows: int, *, pool_rows: int = POOL_ROWS, seed: int = 0
) -> Int[np.ndarray, " row"]:
    """The contexts of the first `n_rows` rows (or all) of epoch 0, in the order they are served."""
    table = store.blocks
    plan = EpochPlan.create(table, pool_rows, seed=seed, epoch=0)
    last = plan.group_of(min(n_rows, store.n_rows) - 1)
    groups = [plan.group_blocks(group) for group in range(last + 1)]
    needed = np.unique(table.unit[np.concatenate(groups)])
    of_unit = {index: store.tokens(store.units[index]).context for index in needed}

    def block_contexts(block: int) -> Int[np.ndarray, " row"]:
        first = table.first[block]
        return of_unit[table.unit[block]][first : first + table.count[block]].astype(np.int64)

    served = [
        np.concatenate([block_contexts(int(block)) for block in blocks])[plan.row_order(group)]
        for group, blocks in enumerate(groups)
    ]
    return np.concatenate(served)[:n_rows]
