"""Codes of one process's latents, where several processes hold an SAE.

The processes' parts of the reconstruction are summed while each sorts its codes by latent.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.kernels.exchange import Exchange
from saelab.kernels.rules import FusedRule
from saelab.kernels.torch.pairs import LatentPairs, pairs_by_latent
from saelab.kernels.torch.threshold import follow_smallest_
from saelab.kernels.triton.codes.residual import Residual, chunk_columns, code_gradients
from saelab.kernels.triton.codes.shared_errors import Chosen, SharedErrors
from saelab.kernels.triton.select.batch import FlatPlace, select_batch_top_k
from saelab.kernels.triton.select.rows import select_top_k
from saelab.kernels.triton.select.shared import (
    NOTHING,
    limit_of_all,
    limit_of_rows,
    selection_keys,
    sizes_of,
)
from saelab.kernels.triton.weights import Decoder, Weights


class Candidates(NamedTuple):
    """This process's largest entries, by row and latent, and their groups counted over all rows."""

    values: Float[Tensor, " entry"]
    indices: Int[Tensor, " entry"]
    groups: Int[Tensor, " entry"]


@dataclass(frozen=True)
class SharedCodes:
    """A process's own of the largest codes of all processes' latents. See `step.codes`.

    How many they are depends on the batch, and there is room for as many as all have together.

    Attributes:
        rule: how codes are selected.
        values, indices: row after row, and in a row group after group; 0 and the last latent
            beyond the end.
        starts: starts of all rows' groups in order, and the end.
        error_rows: the group of each entry, counted over all rows.
        lows: the first own latent of each group of latents.
        group_numbers: numbers 0, 1, ... of the groups of all rows.
        residual: result of the decode.
    """

    rule: FusedRule
    exchange: Exchange
    errors: SharedErrors
    values: Float[Tensor, " entry"]
    indices: Int[Tensor, " entry"]
    starts: Int[Tensor, " batch_group_1"]
    error_rows: Int[Tensor, " entry"]
    lows: Int[Tensor, " group"]
    group_numbers: Int[Tensor, " batch_group"]
    residual: Residual

    @classmethod
    def empty(
        cls, x: Float[Tensor, "batch d_in"], d_sae: int, rule: FusedRule, exchange: Exchange
    ) -> "SharedCodes":
        """Memory for the codes of these rows, of which `d_sae` latents are this process's."""
        most, groups = len(x) * d_sae, rule.groups
        n = min(most, _widest(rule) * len(x) if rule.by_row else int(rule.k * len(x)))
        values = torch.zeros(n, dtype=torch.float32, device=x.device)
        indices = torch.zeros_like(values, dtype=torch.int32)
        numbers = torch.arange(len(x) * groups, dtype=torch.int32, device=x.device)
        return cls(
            rule, exchange, SharedErrors.empty(x, rule, exchange), values, indices,
            indices.new_zeros(len(numbers) + 1), indices.clone(), indices.new_zeros(groups),
            numbers, Residual.empty(x, n, columns=chunk_columns(x.shape[1]), groups=groups),
        )  # fmt: skip

    @property
    def k(self) -> int:
        """See `Codes.k`: rows differ in length."""
        return 0

    def select(self, pre_acts: Float[Tensor, "batch d_sae"], weights: Weights) -> None:
        """See `Codes.select`; the sum of all processes' reconstructions begins here too."""
        found = self._of_rows(pre_acts) if self.rule.by_row else self._of_batch(pre_acts, weights)
        self._keep(*found, pre_acts.shape[1] - 1)
        self.errors.begin(self._chosen, weights.dictionary)

    def decode(self, x: Float[Tensor, "batch d_in"], dictionary: Decoder, *, factor: float) -> None:
        """See `Codes.decode`."""
        out = self.residual
        self.errors.end(self._chosen, x, dictionary, out)
        code_gradients(
            self.values, self.indices, dictionary.scale, out, factor=factor, signed=self.rule.signed
        )

    def invert(self, d_sae: int) -> LatentPairs:
        """See `Codes.invert`; what is beyond the end is sorted last."""
        pairs = pairs_by_latent(self.indices, d_sae)
        pairs.offsets[-1:] = self.starts[-1:]
        return pairs

    def kept(self) -> tuple[Float[Tensor, " entry"], Int[Tensor, " entry"]]:
        """See `Codes.kept`."""
        if not self.rule.wider:
            return self.values, self.indices
        return torch.where(self.error_rows % 2 == 0, self.values, 0.0), self.indices

    @property
    def _chosen(self) -> Chosen:
        return self.values, self.indices, self.starts

    def _of_rows(
        self, pre_acts: Float[Tensor, "batch d_sae"]
    ) -> tuple[Candidates, Bool[Tensor, " entry"]]:
        """This process's largest entries of each row, and which are among the largest of all."""
        (batch, m), signed = pre_acts.shape, self.rule.signed
        budgets = self.rule.budgets or (int(self.rule.k),)
        values, indices = select_top_k(
            pre_acts, min(budgets[-1], m), by_magnitude=signed, rectify=not signed, ordered=False
        )
        own = self._keys(values, self._latents(indices), pre_acts.dtype)
        keys = own.new_full((batch, budgets[-1]), NOTHING)
        keys[:, : own.shape[1]] = own
        every = self.exchange.gather(keys)
        # A code belongs to the first budget that reaches it.
        group = torch.full_like(indices, len(budgets))
        for number, k in reversed([*enumerate(budgets)]):
            group = torch.where(own >= limit_of_rows(every, k), number, group)
        stacked = torch.arange(len(budgets), device=group.device, dtype=group.dtype)[:, None]
        kept = group[:, None] == stacked
        rows = self.group_numbers.view(batch, -1, 1).expand(kept.shape)
        each = (t[:, None].expand(kept.shape) for t in (values.float(), indices))
        return Candidates(*(t.flatten() for t in (*each, rows))), kept.flatten()

    def _of_batch(
        self, pre_acts: Float[Tensor, "batch d_sae"], weights: Weights
    ) -> tuple[Candidates, Bool[Tensor, " entry"]]:
        """The same over the batch; the weights' threshold follows the smallest of all."""
        shard = self.exchange.shard
        assert shard is not None
        batch, n = len(pre_acts), len(self.values)
        place = FlatPlace(torch.empty_like(self.values), *self._places())
        select_batch_top_k(pre_acts, n, by_magnitude=self.rule.signed, out=place)
        rows = (place.rows // self.rule.groups).long()
        own = self._keys(
            place.values, rows * shard.d_sae + self._latents(place.indices), pre_acts.dtype
        )
        total = int(self.rule.k * batch)
        keys = own.new_full((total,), NOTHING)
        keys[:n] = own
        every = self.exchange.gather(keys)
        limit = limit_of_all(every, total)
        sizes = sizes_of(torch.where(every >= limit, every, NOTHING), pre_acts.dtype)
        follow_smallest_(weights.threshold, sizes)
        return Candidates(*place[:3]), own >= limit

    def _places(self) -> tuple[Tensor, Tensor, Tensor]:
        return torch.empty_like(self.indices), torch.empty_like(self.error_rows), self.lows

    def _latents(self, own: Int[Tensor, "*entry"]) -> Int[Tensor, "*entry"]:
        """The numbers of this process's latents among all."""
        shard = self.exchange.shard
        assert shard is not None
        return own.long() * shard.size + shard.rank

    def _keys(
        self, values: Tensor, places: Int[Tensor, "*entry"], dtype: torch.dtype
    ) -> Int[Tensor, "*entry"]:
        return selection_keys(values.abs(), places, dtype)

    def _keep(self, found: Candidates, kept: Bool[Tensor, " entry"], last: int) -> None:
        """Write the kept candidates one after the other, then the `last` latent."""
        n = len(self.values)
        to = torch.where(kept, kept.cumsum(0) - 1, n)
        _write(self.values, to, found.values, 0)
        _write(self.indices, to, found.indices, last)
        _write(self.error_rows, to, found.groups, len(self.group_numbers))
        self.starts[:-1] = torch.searchsorted(self.error_rows, self.group_numbers, out_int32=True)
        self.starts[-1:] = kept.sum()


def _write(out: Tensor, to: Int[Tensor, " entry"], given: Tensor, rest: int) -> None:
    """Write to these places of `out`, `rest` elsewhere; the place beyond its end is none."""
    longer = out.new_full((len(out) + 1,), rest)
    out.copy_(longer.scatter_(0, to, given.to(out.dtype))[:-1])


def _widest(rule: FusedRule) -> int:
    return rule.budgets[-1] if rule.budgets else int(rule.k)
