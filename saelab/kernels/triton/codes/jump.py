# ruff: noqa: ANN001, ANN202, PLR0913 - Triton kernels take pointers, which have no Python type.
"""JumpReLU's codes: entries above their latent's threshold, and entries in the window around it.

An entry that is off but in the window has value zero. It is kept because its threshold learns from
its slope.
"""

from dataclasses import dataclass, replace
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from saelab.kernels.rules import JumpRules
from saelab.kernels.torch.pairs import LatentPairs
from saelab.kernels.triton.codes.ragged import ragged_errors
from saelab.kernels.triton.codes.residual import Residual, chunk_columns, code_gradients
from saelab.kernels.triton.codes.shared_errors import SharedErrors
from saelab.kernels.triton.select.rows import PreActs
from saelab.kernels.triton.select.scan import Entries, Scan
from saelab.kernels.triton.weights import Decoder, Weights

BLOCK = 256
"""Pairs of a latent that are added at a time."""
LEAST_ROOM = 4096


@triton.jit
@no_type_check
def _window_kernel(
    order, offsets, values, gradient, thresholds, half, sums, m, BLOCK: tl.constexpr
):
    """For each latent: the sum of the gradients of its entries in the window, and their number."""
    latent = tl.program_id(0)
    threshold = tl.load(thresholds + latent)
    total = tl.zeros([BLOCK], tl.float32)
    number = tl.zeros([BLOCK], tl.float32)
    for off in range(2):
        start = tl.load(offsets + off * m + latent)
        stop = tl.load(offsets + off * m + latent + 1)
        while start < stop:
            at = start + tl.arange(0, BLOCK)
            pair = tl.load(order + at, mask=at < stop, other=0)
            value = tl.load(values + pair, mask=at < stop, other=0.0)
            # Entries that are off and outside the window are not stored.
            near = (at < stop) & ((off == 1) | (tl.abs(value - threshold) < half))
            total += tl.load(gradient + pair, mask=near, other=0.0)
            number += near.to(tl.float32)
            start += BLOCK
    tl.store(sums + latent, tl.sum(total))
    tl.store(sums + m + latent, tl.sum(number))


@dataclass(frozen=True)
class JumpCodes:
    """Memory for a number of entries, which the scan must not exceed. See `step.codes`.

    Attributes:
        values: values of all rows, one after the other; 0 for entries that are off.
        indices: latents of the entries.
        error_rows: the row of each entry.
        keys: latent of each entry, plus d_sae if it is off, minus `shift`.
        shift: makes keys of most dictionaries fit in 16 bits, which sort faster.
        residual: result of the decode.
        scan: the scan that found the entries.
        errors: computes the errors if other processes hold other latents.
    """

    values: Float[Tensor, " entry"]
    indices: Int[Tensor, " entry"]
    error_rows: Int[Tensor, " entry"]
    keys: Int[Tensor, " entry"]
    shift: int
    residual: Residual
    scan: Scan
    errors: SharedErrors | None = None

    @classmethod
    def empty(
        cls,
        x: Float[Tensor, "batch d_in"],
        d_sae: int,
        rules: JumpRules,
        errors: SharedErrors | None = None,
    ) -> "JumpCodes":
        """The smallest memory for codes of these rows."""
        scan = Scan.empty(len(x), d_sae, rules.width, x.device)
        small = 2 * d_sae <= 2**16
        keys = torch.zeros(0, dtype=torch.int16 if small else torch.int32, device=x.device)
        residual = Residual.empty(x, 0, columns=chunk_columns(x.shape[1]))
        none = keys.new_zeros(0, dtype=torch.int32)
        shift = 2**15 if small else 0
        bare = cls(none.float(), none, none, keys, shift, residual, scan, errors)
        return bare.with_room(LEAST_ROOM)

    def with_room(self, n: int) -> "JumpCodes":
        """Memory for n entries of the same batch; the errors keep their memory."""
        indices = self.indices.new_zeros(n)
        out = self.residual
        # The gradient is computed of all n, also where a step has fewer entries.
        dots = out.dots.new_zeros(len(out.dots), n)
        out = out._replace(dots=dots, gradient=dots.new_empty(n))
        keys = self.keys.new_empty(n)
        return replace(
            self, values=indices.float(), indices=indices, error_rows=indices.clone(), keys=keys,
            residual=out,
        )  # fmt: skip

    @property
    def k(self) -> int:
        """See `Codes.k`: rows differ in length."""
        return 0

    def select(self, found: PreActs, weights: Weights) -> None:
        """Write the entries found by the scan of the same pre-activations."""
        out = Entries(self.values, self.indices, self.error_rows, self.keys)
        self.scan.write(found.values, weights.learned.value, out, self.shift)

    def decode(self, x: Float[Tensor, "batch d_in"], dictionary: Decoder, *, factor: float) -> None:
        """See `Codes.decode`; entries that are off but in the window have a gradient too."""
        out, codes = self.residual, (self.values, self.indices, self.scan.starts)
        if self.errors is None:
            ragged_errors(codes, x, dictionary, out, share=1.0)
        else:
            self.errors.begin(codes, dictionary)
            self.errors.end(codes, x, dictionary, out)
        code_gradients(self.values, self.indices, dictionary.scale, out, factor=factor, signed=True)

    def invert(self, d_sae: int) -> LatentPairs:
        """The entries by latent, those that are on first; a stable sort."""
        keys, order = torch.sort(self.keys, stable=True)
        wanted = torch.arange(2 * d_sae, device=keys.device, dtype=torch.int32) - self.shift
        both = keys.new_empty(2 * d_sae + 1, dtype=torch.int32)
        both[:-1] = torch.searchsorted(keys, wanted.to(keys.dtype), out_int32=True)
        both[-1:] = self.scan.total
        return LatentPairs(order, both[: d_sae + 1], both)

    def kept(self) -> tuple[Float[Tensor, " entry"], Int[Tensor, " entry"]]:
        """See `Codes.kept`."""
        return self.values, self.indices

    def window_sums(
        self, pairs: LatentPairs, thresholds: Float[Tensor, " d_sae"]
    ) -> Float[Tensor, "2 d_sae"]:
        """For each latent: the sum of its gradients in the window, and their number."""
        assert pairs.both is not None
        m = len(thresholds)
        sums = thresholds.new_empty(2, m)
        _window_kernel[(m,)](
            pairs.order, pairs.both, self.values, self.residual.gradient, thresholds,
            self.scan.width / 2, sums, m, BLOCK=BLOCK, num_warps=1,
        )  # fmt: skip
        return sums
