"""A whole training step of an SAE with unit atoms and k latents a row, from kernels alone."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.kernels.pairs import LatentPairs, Slices, heavy_slices, pairs_by_latent
from saelab.kernels.sizes import ceil_div
from saelab.kernels.triton_aux import AuxStep, Extra
from saelab.kernels.triton_codes import empty_codes
from saelab.kernels.triton_gradients import norm_kernel, slice_kernel
from saelab.kernels.triton_rules import Launch, Rules
from saelab.kernels.triton_step import centre_kernel, scale_kernel, step_kernel, vector_kernel
from saelab.kernels.triton_weights import Weights


class Sums(NamedTuple):
    """What both latent-major kernels read, in their order.

    Attributes:
        order: of the pairs by latent.
        offsets: where each latent's pairs begin.
        values: of the codes.
        gradient: of the codes.
        error_rows: of each entry, where rows differ in length; else anything.
        errors: x_hat - x.
        inputs: x - b_dec.
        first: the first piece of each latent that is split.
        pieces: `[capacity 2 d_in]`, the sums of the pieces.
        scalars: `[capacity 3]`, their sums of gradient, value * gradient, and firings.
    """

    order: Int[Tensor, " pair"]
    offsets: Int[Tensor, " d_sae_1"]
    values: Float[Tensor, "*entry"]
    gradient: Float[Tensor, "*entry"]
    error_rows: Int[Tensor, "*entry"]
    errors: Float[Tensor, "row d_in"]
    inputs: Float[Tensor, "batch d_in"]
    first: Int[Tensor, " d_sae_1"]
    pieces: Float[Tensor, "capacity 2 d_in"]
    scalars: Float[Tensor, "capacity 3"]


class Step:
    """One step's memory and launches; every tensor is allocated once and has a fixed address.

    Attributes:
        mse_sum: squared error a row of the last step.
        error: what of it the loss counts: with groups, the prefixes' errors times their share.
        gradient_norm: of the last step, before clipping; 0 without a limit.
    """

    def __init__(self, weights: Weights, rules: Rules, batch: int, launch: Launch) -> None:
        m, d = weights.dec.value.shape
        dtype, device = weights.dec.copy.dtype, weights.scale.device
        self.weights, self.rules, self.launch = weights, rules, launch.fit(d)
        self.x = torch.zeros(batch, d, dtype=dtype, device=device)
        self.centred = torch.empty_like(self.x)
        self.pre_acts = self.x.new_empty(batch, m)
        self.codes = empty_codes(self.x, m, rules)
        self.mse_sum = weights.scale.new_zeros(())
        self.error = self.mse_sum if rules.groups == 1 else self.mse_sum.clone()
        self.gradient_norm = weights.scale.new_zeros(())
        self.share = weights.scale.new_ones(1)
        self.rates = weights.scale.new_empty(2)
        self.chunks = ceil_div(d, self.launch.columns)
        self.norms = weights.scale.new_empty(m, self.chunks)
        self.to_input = weights.scale.new_empty(ceil_div(m, self.launch.latents), d)

    def run(self, side: torch.cuda.Stream | None = None, aux: AuxStep | None = None) -> None:
        """Do one step on `x`, with AuxK if given.

        With a second stream, what does not wait for each other overlaps.
        """
        on_side = _on(side)
        _wait(side, None)
        with on_side:
            self._advance_rates()
        self._centre()
        self.encode()
        self.select()
        _wait(side, None)
        with on_side:
            pairs, slices = self.invert()
            sorted_ = None if side is None else side.record_event()
        self.decode()
        _wait(side, None)
        with on_side:
            columns = self._sum_errors()
        if aux is not None:
            _wait(None, side)
            last = self.codes.residual.residual[self.rules.groups - 1 :: self.rules.groups]
            last = last if self.rules.share == 1 else last / self.rules.share
            mean = last.sum(0, dtype=torch.float32) / len(last)
            variance = (self.mse_sum - mean.square().sum()) * len(self.x)
            aux.run((self.codes.values, self.codes.indices), last, self.centred, variance)
        if sorted_ is not None:
            torch.cuda.current_stream().wait_event(sorted_)
        sums = self.sum_slices(pairs, slices)
        if self.rules.clip_norm is not None:
            _wait(None, side)
            self.clip(sums, columns, aux)
        self.update(sums, aux)
        _wait(None, side)
        self._finish(columns)

    def stages(self) -> dict[str, Callable[[], object]]:
        """The parts of a step without AuxK and clipping, each of which can be repeated by itself.

        They work on what the last step left; the last of them moves the weights.
        """
        pairs, slices = self.invert()
        sums = self.sum_slices(pairs, slices)
        return {
            "encode": lambda: (self._centre(), self.encode()),
            "select": self.select,
            "sort": self.invert,
            "decode": self.decode,
            "update": lambda: (self.sum_slices(pairs, slices), self.update(sums, None)),
        }

    def _centre(self) -> None:
        n, block = self.x.numel(), 1024
        centre_kernel[(ceil_div(n, block),)](
            self.x, self.weights.b_dec.value, self.centred, n, self.x.shape[1], BLOCK=block
        )

    def encode(self) -> None:
        """The one dense product: every pre-activation."""
        w = self.weights
        torch.addmm(w.b_enc.copy, self.centred, w.enc.copy.T, out=self.pre_acts)

    def select(self) -> None:
        """Codes from pre-activations."""
        self.codes.select(self.pre_acts, self.weights)

    def invert(self) -> tuple[LatentPairs, Slices]:
        """The codes in the latents' order."""
        pairs = pairs_by_latent(self.codes.indices, len(self.weights.scale))
        return pairs, heavy_slices(pairs, self.launch.slice)

    def decode(self) -> None:
        """The error and the gradient of the codes."""
        self.codes.decode(self.x, self.weights.dictionary, factor=self._factor)

    def _sum_errors(self) -> Float[Tensor, " d_in"]:
        """The errors of the batch; the sum of what the loss makes of them, for the bias."""
        groups, share = self.rules.groups, self.rules.share
        residual = self.codes.residual
        errors = residual.errors.sum((0, 1)) / len(self.x)
        self.mse_sum.copy_(errors[-1])
        self.error.copy_(errors.sum() * share)
        return torch.sum(residual.residual[::groups], 0, dtype=torch.float32)

    def sum_slices(self, pairs: LatentPairs, slices: Slices) -> Sums:
        """The pairs of the latents that are split, summed piece by piece."""
        capacity, d = len(slices.latent), self.x.shape[1]
        sums = self.norms.new_empty(capacity, 2, d)
        scalars = self.norms.new_empty(capacity, 3)
        ours, out = self.codes, self.codes.residual
        codes = (ours.values, out.gradient, ours.error_rows, out.residual, self.centred)
        slice_kernel[(capacity * self.chunks,)](
            pairs.order, pairs.offsets, *codes, slices.first, slices.latent, sums, scalars,
            capacity, len(self.norms), d, SLICE=slices.size, **self._shape, **self._options,
        )  # fmt: skip
        return Sums(pairs.order, pairs.offsets, *codes, slices.first, sums, scalars)

    def clip(self, sums: Sums, columns: Float[Tensor, " d_in"], aux: AuxStep | None) -> None:
        """The norm of all gradients, as they are after the projection, and what it lets through.

        Costs a second visit to every pair, since Adam may move nothing before the norm is known.
        """
        assert self.rules.clip_norm is not None
        w, n = self.weights, self.launch
        m, d = w.dec.value.shape
        squares = self.norms.new_empty(len(self.to_input), self.chunks)
        to_bias = self.norms.new_empty(m)
        norm_kernel[(squares.numel(),)](
            *sums, *self._extra(aux), squares, to_bias, self._factor, m, d,
            LATENTS=n.latents, EXTRA=aux is not None, **self._shape, **self._options,
        )  # fmt: skip
        vector = self._factor * columns - w.enc.value.T @ to_bias
        self.gradient_norm.copy_((squares.sum() + vector.square().sum()).clamp_min(0).sqrt())
        self.share.copy_((self.rules.clip_norm / (self.gradient_norm + 1e-6)).clamp_max(1))

    def update(self, sums: Sums, aux: AuxStep | None) -> None:
        """Both matrices, the encoder's bias and the dead counts, in one visit to each latent."""
        w, n = self.weights, self.launch
        m, d = w.dec.value.shape
        step_kernel[(len(self.to_input) * self.chunks,)](
            *sums, w.scale, self.norms, *w.dec.all, *w.enc.all, *w.b_enc.all, w.since_fired,
            self.to_input, *self._extra(aux), self.rates, self.share, self._factor, len(self.x),
            m, d, LATENTS=n.latents, EXTRA=aux is not None, CLIP=self._clips, **self._adam,
            **self._shape, **self._options,
        )  # fmt: skip

    def _extra(self, aux: AuxStep | None) -> Extra:
        return Extra.nothing(self.norms) if aux is None else aux.extra

    def _finish(self, columns: Float[Tensor, " d_in"]) -> None:
        """The decoder's bias, whose gradient comes from all tokens, and the new scales."""
        w = self.weights
        m, d = w.dec.value.shape
        vector_kernel[(ceil_div(d, 256),)](
            w.b_dec.value, w.b_dec.m, w.b_dec.v, columns, self.to_input.sum(0), self.rates,
            self.share, self._factor, d, CLIP=self._clips, BLOCK=256, **self._adam,
        )  # fmt: skip
        scale_kernel[(ceil_div(m, 256),)](self.norms, w.scale, m, CHUNKS=self.chunks, BLOCK=256)

    def _advance_rates(self) -> None:
        # In float64: in float32, 1 - 0.999 has five digits.
        w, (b1, b2) = self.weights, self.rules.betas
        w.step.add_(1)
        self.rates[:1] = w.lr / (1 - b1**w.step)
        self.rates[1:] = (1 - b2**w.step).sqrt()

    @property
    def _factor(self) -> float:
        return 2 / (len(self.x) * self.rules.total_variance)

    @property
    def _clips(self) -> bool:
        return self.rules.clip_norm is not None

    @property
    def _shape(self) -> dict[str, int | bool]:
        n = self.launch
        even = self.x.shape[1] % n.columns == 0
        return {
            "k": self.codes.k,
            "GROUPS": self.rules.groups,
            "COLUMNS": n.columns,
            "PAIRS": n.pairs,
            "EVEN": even,
        }

    @property
    def _options(self) -> dict[str, int]:
        return {"num_warps": max(1, self.launch.columns // 256), "num_stages": 1}

    @property
    def _adam(self) -> dict[str, float]:
        b1, b2 = self.rules.betas
        return {"B1": b1, "B2": b2, "EPS": self.rules.eps}


def _on(side: torch.cuda.Stream | None) -> AbstractContextManager[object]:
    return nullcontext() if side is None else torch.cuda.stream(side)


def _wait(waiting: torch.cuda.Stream | None, done: torch.cuda.Stream | None) -> None:
    """Let one stream wait for what the other has been given; None stands for the current one."""
    if waiting is not done:
        current = torch.cuda.current_stream()
        (waiting or current).wait_stream(done or current)
