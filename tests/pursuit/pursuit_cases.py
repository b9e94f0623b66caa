"""Dictionaries and rows to pursue, and the laws' own view of a pursuit."""

from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from saelab.pursuit import steps
from saelab.pursuit.matching_pursuit import Pursuit

shapes = given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 5),
    d_in=st.integers(1, 8),
    d_sae=st.integers(1, 20),
    n_steps=st.integers(1, 9),
)
both_ways = pytest.mark.parametrize("gram", [False, True], ids=["anew", "gram"])


@contextmanager
def correlations_by(*, gram: bool):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "GRAM_UPDATE_COST", -(10**9) if gram else 10**9)
        yield


class Recorder(TorchDispatchMode):
    """Which operations run inside it, and the largest tensor that one returns."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []
        self.largest = 0

    @override
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.names.append(func.overloadpacket.__name__)
        tensors = out if isinstance(out, tuple) else (out,)
        self.largest = max([self.largest, *(t.numel() for t in tensors if torch.is_tensor(t))])
        return out


def problem(seed: int, batch: int, d_in: int, d_sae: int, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, d_in, generator=generator, dtype=dtype)
    return x, F.normalize(torch.randn(d_sae, d_in, generator=generator, dtype=dtype), dim=1)


def orthonormal(seed: int, n: int) -> torch.Tensor:
    return torch.linalg.qr(problem(seed, 1, n, n)[1]).Q


def replay(x, atoms, pursuit: Pursuit):
    """The residual before each step and after the last, by the pursuit's own steps."""
    residuals = [x]
    for c, j in zip(pursuit.values.T, pursuit.indices.T, strict=True):
        residuals.append(residuals[-1] - c[:, None] * atoms[j])
    return residuals


def dense(pursuit: Pursuit, d_sae: int) -> torch.Tensor:
    z = pursuit.values.new_zeros(len(pursuit.values), d_sae)
    return z.scatter_add(1, pursuit.indices, pursuit.values)
