"""The exact selection of a batch's largest entries over the latents of several processes.

The candidates of a whole batch would be too many to tell. The processes add up how often each digit
occurs, so all find the same limit; of the entries that equal it, the first rows' are selected.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from saelab.kernels.exchange import LatentExchange


def keep_own_ties_(
    pre_acts: Float[Tensor, "batch d_sae"],
    ranked: tuple[Int[Tensor, " 2"], Int[Tensor, "2 batch"], Int[Tensor, "2 block"]],
    exchange: LatentExchange,
    *,
    by_magnitude: bool,
    block: int,
) -> None:
    """Turn the number of selected ties, over all processes, into this process's own.

    Of the entries equal to the limit, those of the first rows are selected, and within a row those
    of the lowest latents. So at most one row is cut: some of its ties are selected and some not,
    and there the processes tell each other which latents tie. The first replica has the first rows.

    Args:
        pre_acts: of this process's latents.
        ranked: the limit's key, and how many ties are selected; per row, entries above the limit
            and ties; both summed over each block. The ties' numbers are changed in place.
        exchange: reaches the other processes; of one process nothing is changed.
        by_magnitude: whether |x| is ranked.
        block: rows in a block.
    """
    (state, rows, totals), shard = ranked, exchange.shard
    if shard is None:
        return
    same = rows[1]
    of_row = exchange.gather(same).sum(0)
    before = of_row.cumsum(0) - of_row
    if shard.replicas.count > 1:
        of_replicas, number = of_row.new_zeros(shard.replicas.count), shard.replicas.number
        of_replicas[number] = of_row.sum()
        before += exchange.across(of_replicas)[:number].sum()
    quota = (state[1] - before).clamp(min=0).minimum(of_row)
    cut = (quota > 0) & (quota < of_row)
    row = cut.int().argmax(keepdim=True)
    entries = pre_acts.index_select(0, row)[0]
    key = _order_bits(entries.abs() if by_magnitude else entries)
    ties = torch.zeros(shard.most, dtype=torch.uint8, device=pre_acts.device)
    ties[: len(key)] = key == state[0]
    # In the latents' order: the first of every process, then the second of every process.
    first = exchange.gather(ties).T.flatten().cumsum(0).view(shard.most, shard.size)
    own = (ties * (first[:, shard.rank] <= quota[row])).sum()
    same.copy_(torch.where(cut, own, torch.where(quota == of_row, same, 0)))
    whole = pad(same, (0, totals.shape[1] * block - len(same)))
    totals[1] = whole.view(-1, block).sum(1)
    state[1:] = same.sum()


def _order_bits(x: Float[Tensor, " entry"]) -> Int[Tensor, " entry"]:
    """The same as `digits.order_bits`."""
    bits = (x.float() + 0.0).view(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> (16 if x.dtype == torch.bfloat16 else 0)
