# ruff: noqa: ANN001, ANN201, PLR0913 - Triton kernels take pointers, which have no Python type.
"""The gradients of a process's latents in memory, where replicas of an SAE average them.

Each replica has the gradients of its own rows. They must be averaged before the norm is known and
Adam moves anything, so they are stored, which the step of one replica never does: 4 more bytes per
weight. Clipping and Adam then read them in the form in which they read AuxK's.
"""

from collections.abc import Callable
from typing import no_type_check

import torch
import torch.distributed as dist
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from saelab.kernels.exchange import LatentExchange
from saelab.kernels.triton.step.aux_k import Extra
from saelab.kernels.triton.step.gradients import Sums, columns_of, latent_gradients, program_part
from saelab.kernels.triton.weights import Weights


@triton.jit
@no_type_check
def store_kernel(
    order,
    offsets,
    values,
    gradient,
    error_rows,
    errors,
    inputs,
    first,
    sums,
    scalars,
    slots,
    more_dec,
    more_enc,
    more_scalars,
    slope,
    to_dec_out,
    to_enc_out,
    scalars_out,
    factor,
    m,
    d,
    d_in,
    k: tl.constexpr,
    GROUPS: tl.constexpr,
    LATENTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PAIRS: tl.constexpr,
    EVEN: tl.constexpr,
    EXTRA: tl.constexpr,
    SQUARE: tl.constexpr,
    TIED: tl.constexpr,
):
    """The gradients of LATENTS latents on one chunk: both rows, the bias, and the radial part."""
    group, chunk = program_part(m, LATENTS)
    column, inside, reads = columns_of(chunk, d, d_in, COLUMNS, EVEN, SQUARE)
    latent = group * LATENTS
    while latent < tl.minimum((group + 1) * LATENTS, m):
        pairs, codes = (order, offsets), (values, gradient, error_rows)
        pieces = (first, sums, scalars)
        extra = (slots, more_dec, more_enc, more_scalars, slope)
        to_dec, to_enc, bias, radial, _ = latent_gradients(
            pairs, codes, (errors, inputs), pieces, extra, latent, column, inside, reads, factor,
            d, d_in, k, GROUPS, PAIRS, EXTRA, SQUARE, TIED,
        )  # fmt: skip
        at = latent.to(tl.int64)
        tl.store(to_dec_out + at * d + column, to_dec, mask=inside)
        tl.store(to_enc_out + at * d_in + column, to_enc, mask=reads)
        if chunk == 0:
            tl.store(scalars_out + at * 2, bias)
            tl.store(scalars_out + at * 2 + 1, radial)
        latent += 1


Visit = Callable[..., None]
"""Launches a kernel that visits every latent, with sums, AuxK's gradients, and where it writes."""


class AveragedGradients:
    """The mean of the replicas' gradients of this process's latents; of one replica, nothing.

    Attributes:
        extra: the gradients, in the form that the latent-major kernels add to theirs.
        fired: `[d_sae]`, above 0 where a latent fires in any replica's rows.
    """

    def __init__(self, weights: Weights, exchange: LatentExchange) -> None:
        self._exchange, self._several = exchange, exchange.replicas.count > 1
        (m, d_out), d_in = weights.dec.value.shape, weights.enc.value.shape[1]
        new, m = weights.scale.new_empty, m if self._several else 0
        # One after the other, so that they are averaged at once.
        self._every, self.fired = new(m * (d_out + d_in + 2)), new(m)
        parts = zip(self._every.split([m * d_out, m * d_in, 2 * m]), (d_out, d_in, 2), strict=True)
        slots = torch.arange(m, dtype=torch.int32, device=weights.scale.device)
        shaped = (part.view(m, width) for part, width in parts)
        self.extra = Extra(slots, *shaped, slope=weights.scale.new_ones(1))
        self._none = slots.new_zeros(m + 1)

    def fire(
        self, values: Float[Tensor, "*entry"], indices: Int[Tensor, "*entry"]
    ) -> tuple[Float[Tensor, "*entry"], Int[Tensor, "*entry"]]:
        """What fires, given the codes of this process: values and their latents, of all rows."""
        if not self._several:
            return values, indices
        on = (values != 0).flatten().float()
        self.fired.zero_().scatter_reduce_(0, indices.flatten().long(), on, "amax")
        self._exchange.across(self.fired, dist.ReduceOp.MAX)
        return self.fired, self.extra.slots

    def mean(
        self,
        sums: Sums,
        extra: Extra | None,
        kept: Callable[[], tuple[Tensor, Tensor]],
        visit: Visit,
    ) -> tuple[Sums, Extra | None]:
        """The gradients of all replicas: sums without any pair, and what is to be added to them.

        `kept` are the codes of this process, and `extra` AuxK's gradients, if it ran.
        """
        if not self._several:
            return sums, extra
        if extra is None:  # Else AuxK has asked.
            self.fire(*kept())
        visit(store_kernel, sums, extra, *self.extra[1:4])
        self._exchange.mean(self._every)
        return sums._replace(offsets=self._none, first=self._none), self.extra

    def note_(self, since_fired: Int[Tensor, " d_sae"]) -> None:
        """Note also what fired in other replicas' rows."""
        if self._several:
            since_fired.masked_fill_(self.fired > 0, 0)
