"""Streaming examples against keeping everything and sorting at the end."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.analysis.examples import ExampleKeeper, WindowReader, firings
from saelab.types import SparseCodes

D_SAE, N, REACH, L = 5, 3, 2, 7


def text(seed: int, contexts: int = 12) -> tuple[np.ndarray, torch.Tensor]:
    """Dense activations `[context pos latent]` and a mask whose first position is special."""
    draw = np.random.default_rng(seed)
    dense = draw.normal(size=(contexts, L, D_SAE)) * (draw.random((contexts, L, D_SAE)) < 0.4)
    mask = torch.ones(contexts, L, dtype=torch.bool)
    mask[:, 0] = False
    return dense.astype(np.float32) * mask.numpy()[:, :, None], mask


def codes_of(dense: np.ndarray, mask: torch.Tensor) -> SparseCodes:
    rows = torch.from_numpy(dense)[mask]
    return SparseCodes(rows, torch.arange(D_SAE).expand(len(rows), D_SAE), D_SAE)


def stream(dense, mask, sizes, key, *, one_per_context) -> ExampleKeeper:
    keeper, first = ExampleKeeper(D_SAE, N, REACH), 0
    for size in sizes:
        part = slice(first, first + size)
        codes = codes_of(dense[part], mask[part])
        events = firings(codes, mask[part], first)
        windows = WindowReader(codes, mask[part], first, REACH)
        keeper.update(events, key(events), windows, one_per_context=one_per_context)
        first += size
    return keeper


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), cut=st.integers(1, 11), unique=st.booleans())
def test_the_strongest_examples_are_kept_with_their_windows(seed, cut, unique):
    dense, mask = text(seed)
    keeper = stream(dense, mask, (cut, 12 - cut), lambda e: e.value, one_per_context=unique)
    for latent in range(D_SAE):
        found = [
            (dense[c, p, latent], c, p) for c in range(12) for p in range(L) if dense[c, p, latent]
        ]
        if unique:
            best = {}
            for entry in sorted(found):
                best[entry[1]] = entry
            found = list(best.values())
        expected = sorted(found, reverse=True)[:N]
        assert keeper.context[latent][: len(expected)].tolist() == [c for _, c, _ in expected]
        assert (keeper.context[latent][len(expected) :] == -1).all()
        padded = np.pad(dense[:, :, latent], ((0, 0), (REACH, REACH)))
        for i, (value, c, p) in enumerate(expected):
            assert keeper.value[latent, i] == value
            window = padded[c, p : p + 2 * REACH + 1].astype(np.float16)
            assert np.array_equal(keeper.window[latent, i], window)


def test_random_examples_are_a_fair_sample_of_all_firings():
    """Each of 60 firings of one latent should be kept equally often."""
    dense = np.zeros((6, 11, D_SAE), dtype=np.float32)
    dense[:, 1:, 0] = 1 + np.arange(60).reshape(6, 10)
    mask = torch.ones(6, 11, dtype=torch.bool)
    mask[:, 0] = False
    kept = np.zeros(61)
    for seed in range(300):
        draw = np.random.default_rng(seed)
        keeper = stream(
            dense,
            mask,
            (2, 4),
            lambda e, draw=draw: draw.random(len(e.latent), dtype=np.float32),
            one_per_context=False,
        )
        kept[keeper.value[0].astype(int)] += 1
    assert kept[0] == 0
    expected = 300 * N / 60
    chi_square = ((kept[1:] - expected) ** 2 / expected).sum()
    assert chi_square < 110  # 59 degrees of freedom: p is about 1e-4
