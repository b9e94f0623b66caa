"""A whole training step of an SAE with unit atoms and k latents a row, from kernels alone."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.kernels.pairs import SLICE, LatentPairs, Slices, heavy_slices, pairs_by_latent
from saelab.kernels.sizes import ceil_div, power_of_two
from saelab.kernels.triton_decode import Residual, decode_residual
from saelab.kernels.triton_select import select_top_k
from saelab.kernels.triton_step import (
    centre_kernel,
    scale_kernel,
    slice_kernel,
    step_kernel,
    vector_kernel,
)


@dataclass(frozen=True)
class Rules:
    """What stays the same over a run.

    Attributes:
        k: latents of a row.
        signed: whether the k of largest magnitude are kept, signs included, or the k largest
            rectified.
        total_variance: what the squared error is divided by.
        betas: of Adam.
        eps: of Adam.
    """

    k: int
    signed: bool
    total_variance: float
    betas: tuple[float, float]
    eps: float


@dataclass(frozen=True)
class Launch:
    """Shapes of the latent-major pass, which change its speed and the order of sums.

    The defaults were the fastest of those tried on an H100.

    Attributes:
        columns: of a chunk.
        pairs: whose rows are loaded at a time.
        latents: that a program does one after the other.
        slice: the most pairs of a latent that are not split.
    """

    columns: int = 256
    pairs: int = 2
    latents: int = 8
    slice: int = SLICE

    def fit(self, d: int) -> "Launch":
        """The same for rows of width d, which may be narrower than a chunk."""
        columns = min(self.columns, max(16, power_of_two(d)))
        return Launch(columns, self.pairs, self.latents, self.slice)


@dataclass(frozen=True)
class Parameter:
    """A parameter in float32 with Adam's moments, and its copy in the type of the products."""

    value: Float[Tensor, "*shape"]
    m: Float[Tensor, "*shape"]
    v: Float[Tensor, "*shape"]
    copy: Float[Tensor, "*shape"]

    @classmethod
    def of(cls, value: Float[Tensor, "*shape"], dtype: torch.dtype) -> "Parameter":
        """Without any step behind it; owns its memory."""
        value = value.detach().float().clone(memory_format=torch.contiguous_format)
        # A copy of its own also where the types agree: the kernels write both.
        copy = value.to(dtype, copy=True)
        return cls(value, torch.zeros_like(value), torch.zeros_like(value), copy)

    @property
    def all(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As the kernels take it."""
        return self.value, self.m, self.v, self.copy


@dataclass(frozen=True)
class Weights:
    """The SAE, latent-major, and where its training stands.

    Attributes:
        dec: `[d_sae d_in]`; the atoms are `scale * dec`, which are unit vectors.
        enc: `[d_sae d_in]`, the encoder's transpose.
        b_enc: `[d_sae]`.
        b_dec: `[d_in]`.
        scale: `[d_sae]`.
        since_fired: `[d_sae]`, tokens since each latent last fired.
        lr: Adam's learning rate, to be set between steps.
        step: steps done.
    """

    dec: Parameter
    enc: Parameter
    b_enc: Parameter
    b_dec: Parameter
    scale: Float[Tensor, " d_sae"]
    since_fired: Int[Tensor, " d_sae"]
    lr: Float[Tensor, " 1"]
    step: Float[Tensor, " 1"]

    @classmethod
    def start(
        cls,
        W_enc: Float[Tensor, "d_in d_sae"],
        b_enc: Float[Tensor, " d_sae"],
        W_dec: Float[Tensor, "d_sae d_in"],
        b_dec: Float[Tensor, " d_in"],
        dtype: torch.dtype,
    ) -> "Weights":
        """These weights before the first step; the copies have type `dtype`."""
        one = torch.zeros(1, dtype=torch.float64, device=W_dec.device)
        return cls(
            Parameter.of(W_dec, dtype),
            Parameter.of(W_enc.T, dtype),
            Parameter.of(b_enc, dtype),
            Parameter.of(b_dec, dtype),
            1 / W_dec.detach().float().norm(dim=1).clamp_min(1e-12),
            torch.zeros(len(W_dec), dtype=torch.int64, device=W_dec.device),
            one,
            one.clone(),
        )


class Step:
    """One step's memory and launches; every tensor is allocated once and has a fixed address."""

    def __init__(self, weights: Weights, rules: Rules, batch: int, launch: Launch) -> None:
        m, d = weights.dec.value.shape
        dtype, device = weights.dec.copy.dtype, weights.scale.device
        self.weights, self.rules, self.launch = weights, rules, launch.fit(d)
        self.x = torch.zeros(batch, d, dtype=dtype, device=device)
        self.centred = torch.empty_like(self.x)
        self.pre_acts = self.x.new_empty(batch, m)
        self.values = weights.scale.new_empty(batch, rules.k)
        self.indices = torch.empty(batch, rules.k, dtype=torch.int32, device=device)
        self.residual = Residual.empty(self.x, rules.k)
        self.mse_sum = weights.scale.new_zeros(())
        self.rates = weights.scale.new_empty(2)
        self.chunks = ceil_div(d, self.launch.columns)
        self.norms = weights.scale.new_empty(m, self.chunks)
        self.to_input = weights.scale.new_empty(ceil_div(m, self.launch.latents), d)

    def run(self, side: torch.cuda.Stream | None = None) -> None:
        """Do one step on `x`. With a second stream, what does not wait for each other overlaps."""
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
            columns = torch.sum(self.residual.residual, 0, dtype=torch.float32)
            torch.sum(self.residual.errors, out=self.mse_sum, dim=(0, 1))
            self.mse_sum.div_(len(self.x))
        if sorted_ is not None:
            torch.cuda.current_stream().wait_event(sorted_)
        self.update(pairs, slices)
        _wait(None, side)
        self._finish(columns)

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
        signed = self.rules.signed
        select_top_k(
            self.pre_acts,
            self.rules.k,
            by_magnitude=signed,
            rectify=not signed,
            ordered=False,
            out=(self.values, self.indices),
        )

    def invert(self) -> tuple[LatentPairs, Slices]:
        """The codes in the latents' order."""
        pairs = pairs_by_latent(self.indices, len(self.weights.scale))
        return pairs, heavy_slices(pairs, self.launch.slice)

    def decode(self) -> None:
        """The error and the gradient of the codes."""
        w = self.weights
        decode_residual(
            self.x,
            self.values,
            self.indices,
            w.dec.copy,
            w.scale,
            w.b_dec.value,
            factor=self._factor,
            signed=self.rules.signed,
            out=self.residual,
        )

    def update(self, pairs: LatentPairs, slices: Slices) -> None:
        """Both matrices, the encoder's bias and the dead counts, in one visit to each latent."""
        w, n = self.weights, self.launch
        batch, (m, d), capacity = len(self.x), w.dec.value.shape, len(slices.latent)
        sums = self.norms.new_empty(capacity, 2, d)
        scalars = self.norms.new_empty(capacity, 3)
        codes = (self.values, self.residual.gradient, self.residual.residual, self.centred)
        even = d % n.columns == 0
        shape = {"k": self.rules.k, "COLUMNS": n.columns, "PAIRS": n.pairs, "EVEN": even}
        options = {"num_warps": max(1, n.columns // 256), "num_stages": 1}
        slice_kernel[(capacity * self.chunks,)](
            pairs.order, pairs.offsets, *codes, slices.first, slices.latent, sums, scalars,
            capacity, m, d, SLICE=slices.size, **shape, **options,
        )  # fmt: skip
        step_kernel[(len(self.to_input) * self.chunks,)](
            pairs.order, pairs.offsets, *codes, slices.first, sums, scalars, w.scale, self.norms,
            *w.dec.all, *w.enc.all, *w.b_enc.all, w.since_fired, self.to_input, self.rates,
            self._factor, batch, m, d, LATENTS=n.latents, **self._adam, **shape, **options,
        )  # fmt: skip

    def _finish(self, columns: Float[Tensor, " d_in"]) -> None:
        """The decoder's bias, whose gradient comes from all tokens, and the new scales."""
        w = self.weights
        m, d = w.dec.value.shape
        vector_kernel[(ceil_div(d, 256),)](
            w.b_dec.value, w.b_dec.m, w.b_dec.v, columns, self.to_input.sum(0), self.rates,
            self._factor, d, BLOCK=256, **self._adam,
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
