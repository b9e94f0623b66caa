"""Activations without variance are refused before anything is written."""

import numpy as np
import pytest
import torch
from conftest import small_config

from saelab.activations.arrays import write_arrays
from saelab.activations.store import ActivationStore
from saelab.activations.tensor_rows import TORCH
from saelab.config import UsageError
from saelab.sae.topk import TopKConfig
from saelab.training.constant import alike
from saelab.training.loop import train

ROWS = 600


def constant(kind):
    generator = np.random.default_rng(0)
    row = generator.normal(size=16).astype(np.float32)
    row[3] = 900.0  # A channel far above the others, as language models have.
    rows = np.repeat(row[None], ROWS, axis=0)
    return {
        "zero": 0 * rows,
        "a number": np.full_like(rows, 3.0),
        "a row": rows,
        "rounding": rows * (1 + 1e-6 * generator.normal(size=rows.shape).astype(np.float32)),
    }[kind]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["zero", "a number", "a row", "rounding"])
def test_constant_activations_are_refused(tmp_path, kind, dtype):
    store = ActivationStore(write_arrays(tmp_path / "s", {"x": constant(kind)}, dtype=dtype))
    config = small_config(store, site="x", sae=TopKConfig(d_sae=8, k=2))
    with pytest.raises(UsageError, match=r"of x in .* are constant: 600 rows"):
        train(config, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_target_that_is_constant_is_refused(tmp_path):
    x = np.random.default_rng(0).normal(size=(ROWS, 16)).astype(np.float32)
    store = ActivationStore(write_arrays(tmp_path / "s", {"x": x, "y": constant("a row")}))
    config = small_config(store, site="x", target_site="y", sae=TopKConfig(d_sae=8, k=2))
    with pytest.raises(UsageError, match=r"of y in .* are constant"):
        train(config, out=tmp_path / "run")


@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("what", ["one channel", "few rows", "small beside a channel"])
def test_a_little_variance_is_enough(what, dtype):
    rows = torch.from_numpy(constant("a row")).clone()
    noise = torch.randn(ROWS, 16, generator=torch.Generator().manual_seed(0))
    if what == "one channel":
        rows[:, 5] += noise[:, 5]
    elif what == "few rows":
        rows[:5] += noise[:5]
    else:
        rows[:, :3] += noise[:, :3]
    stored = rows.to(TORCH[dtype]).float()
    assert not alike(stored, torch.finfo(TORCH[dtype]).eps)
