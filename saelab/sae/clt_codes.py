"""Codes of a cross-layer transcoder by the layer that reads, and by the layer that is written.

Its latents are numbered layer by layer, as many in each of n layers.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.pursuit.select import top_k
from saelab.types import SparseCodes


def top_k_by_layer(pre_acts: Float[Tensor, "batch d_sae"], k: int, n: int) -> SparseCodes:
    """The k largest of each of the n layers, rectified."""
    per_layer = pre_acts.shape[1] // n
    found = top_k(pre_acts.view(len(pre_acts) * n, per_layer), k)
    first = torch.arange(n, device=pre_acts.device).repeat(len(pre_acts)) * per_layer
    indices = (found.indices + first[:, None]).view(len(pre_acts), -1)
    return SparseCodes(found.values.view(indices.shape), indices, pre_acts.shape[1])


def by_source(codes: SparseCodes, n: int) -> SparseCodes:
    """The same entries as codes of `batch * n` rows: row b * n + l has layer l's latents."""
    latent = codes.indices.flatten()
    row = codes.rows().flatten() * n + latent // (codes.d_sae // n)
    return _sorted(codes.values.flatten(), row, latent, codes, n)


def by_target(codes: SparseCodes, n: int) -> SparseCodes:
    """Codes of `batch * n` rows: row b * n + t has the latents of all layers up to t.

    Latent i of any layer is there as latent i of layer t.
    """
    per_layer = codes.d_sae // n
    latent = codes.indices.flatten()
    layer, times = latent // per_layer, n - latent // per_layer
    entry = torch.arange(len(latent), device=latent.device).repeat_interleave(times)
    steps = torch.arange(len(entry), device=latent.device) - (times.cumsum(0) - times)[entry]
    target = layer[entry] + steps
    row = codes.rows().flatten()[entry] * n + target
    moved = target * per_layer + latent[entry] % per_layer
    return _sorted(codes.values.flatten()[entry], row, moved, codes, n)


def _sorted(values: Tensor, row: Tensor, latent: Tensor, codes: SparseCodes, n: int) -> SparseCodes:
    row, order = torch.sort(row, stable=True)
    starts = torch.searchsorted(row, torch.arange(len(codes) * n, device=row.device))
    return SparseCodes(values[order], latent[order], codes.d_sae, starts)
