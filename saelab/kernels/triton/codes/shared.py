"""Codes of one process's latents, where several processes hold an SAE.

The processes' parts of the reconstruction are summed while each sorts its codes by latent.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from saelab.kernels.exchange import LatentExchange, row_pieces
from saelab.kernels.rules import FusedRule
from saelab.kernels.torch.pairs import LatentPairs
from saelab.kernels.torch.threshold import follow_smallest_
from saelab.kernels.triton.codes.residual import Residual, chunk_columns, code_gradients
from saelab.kernels.triton.codes.shared_errors import Chosen, SharedErrors
from saelab.kernels.triton.pairs import pairs_by_latent
from saelab.kernels.triton.select.batch import FlatPlace, select_batch_top_k
from saelab.kernels.triton.select.rows import PreActs, select_top_k
from saelab.kernels.triton.select.shared_rows import RowPlace, SharedRows
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
        by_row: chooses each row's; None if the whole batch's are chosen.
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
    by_row: SharedRows | None

    @classmethod
    def empty(
        cls, x: Float[Tensor, "batch d_in"], d_sae: int, rule: FusedRule, exchange: LatentExchange
    ) -> "SharedCodes":
        """Memory for the codes of these rows, of which `d_sae` latents are this process's."""
        most, groups = len(x) * d_sae, rule.groups
        every = len(x) * exchange.replicas.count
        n = min(most, _budgets(rule)[-1] * len(x) if rule.by_row else int(rule.k * every))
        values = torch.zeros(n, dtype=torch.float32, device=x.device)
        indices = torch.zeros_like(values, dtype=torch.int32)
        numbers = torch.arange(len(x) * groups + 1, dtype=torch.int32, device=x.device)
        residual = Residual.empty(x, n, columns=chunk_columns(x.shape[1]), groups=groups)
        residual.dots.zero_()  # They are added up beyond the end of the entries too.
        return cls(
            rule, exchange, SharedErrors.empty(x, rule, exchange), values, indices,
            torch.zeros_like(numbers), indices.clone(), indices.new_zeros(groups),
            numbers, residual,
            SharedRows.empty(x, _budgets(rule), exchange) if rule.by_row else None,
        )  # fmt: skip

    @property
    def k(self) -> int:
        """See `Codes.k`: rows differ in length."""
        return 0

    def select(self, found: PreActs, weights: Weights) -> None:
        """See `Codes.select`; the sum of all processes' reconstructions begins here too."""
        if self.by_row is not None:
            self._select_of_rows(self.by_row, found, weights)
        else:
            self._select_of_batch(found, weights)
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

    def _select_of_rows(self, by_row: SharedRows, found: PreActs, weights: Weights) -> None:
        """This process's of the largest of each row, which are among its own largest.

        While it selects the second half of the rows, the others' of the first half arrive, whose
        reconstructions are summed while the second half's are decoded.
        """
        batch, m = found.values.shape
        k, signed = min(_budgets(self.rule)[-1], m), self.rule.signed
        pieces, told = row_pieces(batch), []
        for first, end in pieces:
            values, indices = select_top_k(
                found.values[first:end], k, by_magnitude=signed, rectify=not signed, ordered=False,
                maxima=found.maxima and (found.maxima[0][first:end], found.maxima[1]),
            )  # fmt: skip
            told.append(by_row.tell(values, indices, first))
        self._clear(m)
        place = RowPlace(self.values, self.indices, self.error_rows, self.starts)
        for rows, each in zip(pieces, told, strict=True):
            by_row.keep(each, place)
            self.errors.begin_piece(self._chosen, weights.dictionary, rows)

    def _clear(self, d_sae: int) -> None:
        """Make all entries such as lie beyond the end."""
        self.values.zero_()
        self.indices.fill_(d_sae - 1)
        self.error_rows.fill_(len(self.group_numbers) - 1)

    def _select_of_batch(self, found: PreActs, weights: Weights) -> None:
        """This process's of the largest of the batch; the threshold follows the smallest of all."""
        batch, m = found.values.shape
        self._clear(m)
        place = FlatPlace(self.values, self.indices, self.error_rows, self.lows)
        select_batch_top_k(
            found.values, int(self.rule.k * batch * self.exchange.replicas.count), out=place,
            by_magnitude=self.rule.signed, maxima=found.maxima, exchange=self.exchange,
        )  # fmt: skip
        self.starts.copy_(torch.searchsorted(self.error_rows, self.group_numbers, out_int32=True))
        sizes = self.values.abs()
        smallest = torch.where(sizes > 0, sizes, torch.inf).amin(0, keepdim=True)
        every = self.exchange.gather(smallest)
        follow_smallest_(weights.threshold, self.exchange.across(every, dist.ReduceOp.MIN))


def _budgets(rule: FusedRule) -> tuple[int, ...]:
    """How many entries are selected of each row, the fewest first."""
    return tuple(rule.budgets) or (int(rule.k),)
