"""Random weights, the formulas of the papers row by row in float64, and how a refusal reads."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import override

from saelab.config import UsageError

D_IN, D_SAE = 6, 10
Array = NDArray[np.float64]

ROWS = torch.from_numpy(np.random.default_rng(1).normal(0.3, 2, (40, D_IN))).float()
"""What every SAE here encodes."""


def weights(seed: int = 0) -> dict[str, Tensor]:
    """Weights in saelab's layout, thresholds included; decoder norms differ between latents."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "W_enc": normal(D_IN, D_SAE),
        "W_dec": normal(D_SAE, D_IN) * torch.linspace(0.2, 3, D_SAE)[:, None],
        "b_enc": normal(D_SAE),
        "b_dec": normal(D_IN),
        "threshold": torch.rand(D_SAE, generator=generator) * 2,
    }


PLAIN = ("W_enc", "W_dec", "b_enc", "b_dec")


def pick(tensors: dict[str, Tensor], *names: str) -> dict[str, Any]:
    return {name: tensors[name].contiguous() for name in names}


def doubles(*tensors: Tensor) -> list[Array]:
    return [tensor.double().numpy() for tensor in tensors]


def pre_activations(tensors: dict[str, Tensor], *, centred: bool) -> Array:
    x, W_enc, b_enc, b_dec = doubles(ROWS, tensors["W_enc"], tensors["b_enc"], tensors["b_dec"])
    return (x - b_dec if centred else x) @ W_enc + b_enc


def reconstruction(codes: Array, tensors: dict[str, Tensor]) -> Array:
    W_dec, b_dec = doubles(tensors["W_dec"], tensors["b_dec"])
    return codes @ W_dec + b_dec


def above(pre_acts: Array, threshold: Array | float) -> Array:
    return np.where(pre_acts > np.maximum(threshold, 0), pre_acts, 0)


def first(pre_acts: Array, k: int, *, signed: bool = False) -> Array:
    codes = np.zeros_like(pre_acts)
    for row, values in enumerate(pre_acts):
        for latent in sorted(
            range(D_SAE), key=lambda j: -(abs(values[j]) if signed else values[j])
        )[:k]:
            codes[row, latent] = values[latent] if signed else max(values[latent], 0)
    return codes


def assert_means(foreign, codes: Array, x_hat: Array) -> None:
    """`foreign` encodes and reconstructs ROWS as given, and the case is not a trivial one."""
    active = codes != 0
    assert active.any()
    assert not active.all()
    assert np.allclose(foreign.encode_dense(ROWS).numpy(), codes, rtol=1e-4, atol=1e-5)
    assert np.allclose(foreign.reconstruct(ROWS).numpy(), x_hat, rtol=1e-4, atol=1e-4)


class Payload:
    """Pickles into a call that makes the directory `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    @override
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.marker),)


def sae_lens_directory(
    path: Path, tensors: dict[str, Tensor], architecture: str = "standard", **cfg: object
) -> Path:
    """A directory as SAELens 6 writes it."""
    path.mkdir(exist_ok=True)
    save_file(tensors, path / "sae_weights.safetensors")
    base = {
        "architecture": architecture,
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.54.12",
            "model_name": "gpt2",
            "hook_name": "blocks.8.hook_resid_pre",
            "hook_head_index": None,
        },
    }
    write_json(path / "cfg.json", base | cfg)
    return path


def write_json(path: Path, values: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def refusal(call: Callable[[], object]) -> str:
    """The one sentence with which `call` refuses."""
    with pytest.raises(UsageError) as caught:
        call()
    text = str(caught.value)
    assert text.endswith(".")
    assert "\n" not in text
    assert len(text) < 600
    return text
