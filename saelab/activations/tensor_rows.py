"""Stored rows as tensors: their dtypes and raw bytes."""

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from saelab.activations.format import Dtype

TORCH: dict[Dtype, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def raw_bytes(rows: Float[Tensor, "row d_in"]) -> memoryview:
    """The bits of contiguous CPU rows as bytes, without conversion."""
    assert rows.is_contiguous()
    assert rows.device.type == "cpu"
    return rows.view(torch.uint8).numpy().data.cast("B")


def rows_from_bytes(
    raw: UInt8[Tensor, " byte"], dtype: Dtype, d_in: int
) -> Float[Tensor, "row d_in"]:
    """The rows whose bits are in `raw`; the result shares its memory."""
    return raw.view(TORCH[dtype]).view(-1, d_in)


def as_tensor(rows: Shaped[Tensor, "..."] | Shaped[np.ndarray, "..."]) -> Shaped[Tensor, "..."]:
    """A tensor of the same values; read-only arrays (memory maps) are copied."""
    if isinstance(rows, Tensor):
        return rows.detach()
    return torch.from_numpy(rows if rows.flags.writeable else rows.copy())
