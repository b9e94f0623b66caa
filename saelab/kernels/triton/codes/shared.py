"""Codes of one process's latents, where several processes hold an SAE.

The processes' parts of the reconstruction are summed while each sorts its codes by latent.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.kernels.exchange import LatentExchange
from saelab.kernels.rules import FusedRule
from saelab.kernels.torch.pairs import LatentPairs, pairs_by_latent
from saelab.kernels.torch.threshold import follow_smallest_
from saelab.kernels.triton.codes.residual import Residual, chunk_columns, code_gradients
from saelab.kernels.triton.codes.shared_errors import Chosen, SharedErrors
from saelab.kernels.triton.select.batch import FlatPlace, select_batch_top_k
from saelab.kernels.triton.select.rows import select_top_k
from saelab.kernels.triton.select.shared import NOTHING, limit_of_rows, row_keys
from saelab.kernels.triton.weights import Decoder, Weights


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
        group_numbers: numbers 0, 1, ... of the groups of all rows, and of the end.
        residual: result of the decode.
    """

    rule: FusedRule
    exchange: LatentExchange
    errors: SharedErrors
    values: Float[Tensor, " entry"]
    indices: Int[Tensor, " entry"]
    starts: Int[Tensor, " batch_group_1"]
    error_rows: Int[Tensor, " entry"]
    lows: Int[Tensor, " group"]
    group_numbers: Int[Tensor, " batch_group_1"]
    residual: Residual

    @classmethod
    def empty(
        cls, x: Float[Tensor, "batch d_in"], d_sae: int, rule: FusedRule, exchange: LatentExchange
    ) -> "SharedCodes":
        """Memory for the codes of these rows, of which `d_sae` latents are this process's."""
        most, groups = len(x) * d_sae, rule.groups
        n = min(most, _widest(rule) * len(x) if rule.by_row else int(rule.k * len(x)))
        values = torch.zeros(n, dtype=torch.float32, device=x.device)
        indices = torch.zeros_like(values, dtype=torch.int32)
        numbers = torch.arange(len(x) * groups + 1, dtype=torch.int32, device=x.device)
        return cls(
            rule, exchange, SharedErrors.empty(x, rule, exchange), values, indices,
            torch.zeros_like(numbers), indices.clone(), indices.new_zeros(groups),
            numbers, Residual.empty(x, n, columns=chunk_columns(x.shape[1]), groups=groups),
        )  # fmt: skip

    @property
    def k(self) -> int:
        """See `Codes.k`: rows differ in length."""
        return 0

    def select(self, pre_acts: Float[Tensor, "batch d_sae"], weights: Weights) -> None:
        """See `Codes.select`; the sum of all processes' reconstructions begins here too."""
        if self.rule.by_row:
            self._select_of_rows(pre_acts)
        else:
            self._select_of_batch(pre_acts, weights)
        self.starts.copy_(torch.searchsorted(self.error_rows, self.group_numbers, out_int32=True))
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

    def _select_of_rows(self, pre_acts: Float[Tensor, "batch d_sae"]) -> None:
        """This process's of the largest of each row, which are among its own largest."""
        (batch, m), signed, shard = pre_acts.shape, self.rule.signed, self.exchange.shard
        assert shard is not None
        budgets = self.rule.budgets or (int(self.rule.k),)
        values, indices = select_top_k(
            pre_acts, min(budgets[-1], m), by_magnitude=signed, rectify=not signed, ordered=False
        )
        own = row_keys(values.abs(), indices.long() * shard.size + shard.rank)
        keys = own.new_full((batch, budgets[-1]), NOTHING)
        keys[:, : own.shape[1]] = own
        every = self.exchange.gather(keys)
        # A code belongs to the first budget that reaches it.
        group = torch.full_like(indices, len(budgets))
        for number, k in reversed([*enumerate(budgets)]):
            group = torch.where(own >= limit_of_rows(every, k), number, group)
        stacked = torch.arange(len(budgets), device=group.device, dtype=group.dtype)[:, None]
        kept = group[:, None] == stacked
        rows = self.group_numbers[:-1].view(batch, -1, 1)
        found = (
            each.expand(kept.shape).flatten() for each in (values[:, None], indices[:, None], rows)
        )
        self._keep(kept.flatten(), *found, last=m - 1)

    def _keep(
        self,
        kept: Bool[Tensor, " entry"],
        values: Float[Tensor, " entry"],
        indices: Int[Tensor, " entry"],
        rows: Int[Tensor, " entry"],
        last: int,
    ) -> None:
        """Write the kept entries one after the other, and the `last` latent beyond their end."""
        to = torch.where(kept, kept.cumsum(0) - 1, len(self.values))
        _write(self.values, to, values, 0)
        _write(self.indices, to, indices, last)
        _write(self.error_rows, to, rows, len(self.group_numbers) - 1)

    def _select_of_batch(self, pre_acts: Float[Tensor, "batch d_sae"], weights: Weights) -> None:
        """This process's of the largest of the batch; the threshold follows the smallest of all."""
        batch, m = pre_acts.shape
        self.values.zero_()
        self.indices.fill_(m - 1)
        self.error_rows.fill_(len(self.group_numbers) - 1)
        place = FlatPlace(self.values, self.indices, self.error_rows, self.lows)
        select_batch_top_k(
            pre_acts, int(self.rule.k * batch), by_magnitude=self.rule.signed, out=place,
            exchange=self.exchange,
        )  # fmt: skip
        sizes = self.values.abs()
        smallest = torch.where(sizes > 0, sizes, torch.inf).amin(0, keepdim=True)
        follow_smallest_(weights.threshold, self.exchange.gather(smallest))


def _write(out: Tensor, to: Int[Tensor, " entry"], given: Tensor, rest: int) -> None:
    """Write to these places of `out`, `rest` elsewhere; the place beyond its end is none."""
    longer = out.new_full((len(out) + 1,), rest)
    out.copy_(longer.scatter_(0, to, given.to(out.dtype))[:-1])


def _widest(rule: FusedRule) -> int:
    return rule.budgets[-1] if rule.budgets else int(rule.k)
