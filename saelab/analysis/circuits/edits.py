"""Edits of the live model in which some latents are missing or scaled.

A latent of a cross-layer transcoder is taken away from every MLP output that it writes. If a later
MLP computes from the first one's output what the transcoder has as a direct write, the live model
loses it twice.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.host.host import Host, by_layer
from saelab.host.layers import FurtherWrite
from saelab.host.splice import keep as keep_input
from saelab.kernels import sparse_decode
from saelab.lm.protocol import Edit
from saelab.sae.decoder import dtype_of
from saelab.types import SparseCodes

Members = dict[str, Bool[Tensor, "*#batch #pos d_sae"]]
"""The latents of a circuit by SAE name, at each position or at all positions; in every context, or
each context's own."""


def ablation_edits(
    hosts: Sequence[Host],
    tokens: Int[Tensor, "batch pos"],
    keep: Members,
    means: Mapping[str, Float[Tensor, " d_sae"]] | None = None,
    factor: float | int = 0.0,
) -> dict[str, Edit]:
    """Edits under which only the latents in `keep` act; errors do not change.

    If a site keeps all its latents, its activations stay bit-equal; so do positions where its SAE
    is not applied.

    Args:
        hosts: the SAEs.
        tokens: tokens that the edited model reads.
        keep: latents that do not change.
        means: values of the other latents, by SAE name; default: zero.
        factor: factor of the other latents' difference from these values; 0 removes it, 2 doubles
            it.
    """
    edits: dict[str, Edit] = {}
    changes: dict[str, list[Edit]] = defaultdict(list)
    for host in by_layer(hosts):
        mean = None if means is None else means[host.name]
        ablated = _Ablated(host, tokens, keep[host.name], 1.0 - factor, mean)
        if host.is_transcoder:
            # A transcoder's output is edited with what was seen at its input in the same pass.
            edits[host.reads] = keep_input(ablated.inputs)
        # A cross-layer transcoder's own layer comes first, and encodes for the later ones.
        changes[host.writes].append(ablated.own)
        for write in host.further:
            changes[write.site].append(partial(ablated.further, write))
    return edits | {site: partial(_added, found) for site, found in changes.items()}


def _added(
    changes: Sequence[Edit], value: Float[Tensor, "batch pos d"]
) -> Float[Tensor, "batch pos d"]:
    """The value plus all changes, each computed from the value as it is."""
    return value + torch.stack([change(value).to(value.dtype) for change in changes]).sum(0)


class _Ablated:
    """What is taken away of one SAE's latents in a pass, and the changes that this makes."""

    def __init__(
        self,
        host: Host,
        tokens: Int[Tensor, "batch pos"],
        keep: Bool[Tensor, "*#batch #pos d_sae"],
        share_lost: float,
        mean: Float[Tensor, " d_sae"] | None,
    ) -> None:
        self.inputs: list[Tensor] = []
        self._host, self._tokens, self._keep = host, tokens, keep
        self._share, self._mean = share_lost, mean
        self._away: SparseCodes | None = None
        self._to_mean: Tensor | None = None

    def own(self, value: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch pos d"]:
        """The change of what the SAE writes; later layers' changes need it first."""
        x = self.inputs[0] if self.inputs else value
        mask = self._keep.expand(*value.shape[:2], -1).flatten(0, 1)
        codes, applies = self._host.encode(self._tokens, x, value)
        gone = ~mask[codes.rows(), codes.indices]
        self._away = SparseCodes(codes.values * gone, codes.indices, codes.d_sae, codes.offsets)
        if self._mean is not None:
            self._to_mean = ~mask * self._mean * applies.flatten()[:, None]
        return self._change(self._host.sae.W_dec).view(value.shape)

    def further(
        self, write: FurtherWrite, value: Float[Tensor, "batch pos d"]
    ) -> Float[Tensor, "batch pos d"]:
        """The change of what its latents write to a later layer."""
        change = self._change(write.W_dec).view(value.shape) * write.factor
        return change * write.lands(value)[..., None]

    def _change(self, W_dec: Float[Tensor, "d_sae d"]) -> Float[Tensor, "row d"]:
        assert self._away is not None
        change = -sparse_decode(self._away, W_dec, dtype_of(self._host.sae))
        if self._to_mean is not None:
            change = change + self._to_mean @ W_dec.to(self._to_mean.dtype)
        return self._share * change
