"""SAEs that select over the whole batch in training, and by one threshold at inference."""

import abc
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from saelab.config import UsageError
from saelab.kernels.rules import FusedRule
from saelab.kernels.torch.threshold import follow_smallest_
from saelab.pursuit.select import above
from saelab.sae.aux_k import AuxKConfigT
from saelab.sae.base import AbstractSAE
from saelab.sae.checks import check_rows
from saelab.sae.in_blocks import above_alone, above_of_all
from saelab.sae.interop.foreign import ForeignSAE
from saelab.sae.unit_norm import AbstractUnitNormSAE
from saelab.shard import LatentShard
from saelab.types import SparseCodes

CHUNK = 2048


class AbstractBatchSelectionSAE(AbstractUnitNormSAE[AuxKConfigT], abc.ABC):
    """Inference keeps every pre-activation above one threshold (arXiv 2412.06410, eq. 6).

    If inference also selected over the batch, a token's codes would depend on its neighbours.
    During training the threshold is a running mean of the smallest value kept, which lets slightly
    more than k latents through; unfinished runs use it. `calibrate` then sets the threshold on
    held-out rows so that the mean L0 is k.

    Attributes:
        k: active latents per row on average.
        threshold: NaN until the first step.
    """

    def __init__(
        self, d_in: int, d_sae: int, k: float | int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(d_in, d_sae, generator)
        self.k = k
        self.register_buffer("threshold", torch.tensor(torch.nan))

    threshold: Tensor

    @property
    def signed(self) -> bool:
        """Whether latents are compared by magnitude and keep their signs."""
        return self.config.sparsity.signed

    @override
    def encode(self, x: Float[Tensor, "batch d_in"]) -> SparseCodes:
        check_rows(x, self.d_in)
        self._check_threshold()
        encoder = self.affine_encoder()
        if encoder is None:  # of several sites
            return self.codes_from(self.pre_activations(x))
        return above_of_all(encoder, x, self.threshold, signed=self.signed)

    def codes_from(self, pre_acts: Float[Tensor, "batch d_sae"]) -> SparseCodes:
        """The codes that `encode` makes of rows with these pre-activations."""
        self._check_threshold()
        return above(pre_acts, self.threshold, signed=self.signed)

    def _check_threshold(self) -> None:
        if bool(self.threshold.isnan().all()):
            raise UsageError(
                "This SAE has no threshold yet: train it, or call calibrate(rows) on some rows."
            )

    def encode_some(
        self, x: Float[Tensor, "batch d_in"], latents: Int[Tensor, " some"]
    ) -> SparseCodes:
        """See `saelab.sae.in_blocks.codes_of`."""
        check_rows(x, self.d_in)
        return above_alone(self.affine_encoder(), x, latents, self.threshold, signed=self.signed)

    @override
    @torch.no_grad()
    def observe(self, codes: SparseCodes) -> None:
        self.follow(codes)

    def follow(self, codes: SparseCodes) -> None:
        """Move the threshold after the codes of a training step."""
        shard = self.shard
        values = codes.values if shard is None else shard.smallest_of_all(codes.values)
        follow_smallest_(self.threshold, values)

    @override
    @torch.no_grad()
    def calibrate(self, rows: Float[Tensor, "n d_in"]) -> None:
        sizes = (self.sizes(part) for part in rows.split(CHUNK))
        self.threshold.copy_(density_threshold(sizes, round(self.k * len(rows)), self.shard))

    @override
    def take_threshold(self, source: AbstractSAE, rows: Float[Tensor, "n d_in"]) -> None:
        if isinstance(source, AbstractBatchSelectionSAE) and source.signed == self.signed:
            self.threshold.copy_(source.threshold)

    @override
    @torch.no_grad()
    def rescale(self, scale: float, target_scale: float | None = None) -> None:
        super().rescale(scale, target_scale)
        self.threshold.div_(scale if target_scale is None else target_scale)

    @override
    def fused_rule(self) -> FusedRule | str:
        return self._batch_rule()

    def _batch_rule(self) -> FusedRule:
        return self.selected_rule(self.k, signed=self.signed, over_batch=True)

    @override
    def foreign_rule(self) -> dict[str, Any] | None:
        if self.signed:
            return None
        return {"threshold": self.threshold.expand(self.d_sae), "batch_k": self.k}

    @override
    def foreign_weights(self, foreign: ForeignSAE) -> dict[str, Tensor]:
        assert foreign.threshold is not None
        return super().foreign_weights(foreign) | {"threshold": foreign.threshold[0].clone()}

    def sizes(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """What `calibrate` compares: a row's entries as the threshold sees them, at least 0."""
        pre_acts = self.pre_activations(x)
        return pre_acts.abs() if self.signed else pre_acts.relu()


def density_threshold(
    sizes: Iterable[Float[Tensor, "_ d_sae"]], n: int, shard: LatentShard | None = None
) -> Float[Tensor, ""]:
    """The number that exactly the `n` largest values exceed, ties aside.

    It lies halfway between the n-th and the next; zero if fewer than n are positive. With `shard`,
    the values are those of all processes' latents.
    """
    kept: Tensor | None = None
    for part in sizes:
        flat = part.flatten() if kept is None else torch.cat([kept, part.flatten()])
        kept = flat.topk(min(n + 1, len(flat)), sorted=False).values
    assert kept is not None
    if shard is not None:
        every = shard.numbers_all(kept, n + 1)
        kept = every.topk(min(n + 1, len(every)), sorted=False).values
    largest = kept.sort(descending=True).values
    if len(largest) <= n:
        return largest.new_zeros(())
    return (largest[n - 1] + largest[n]) / 2
