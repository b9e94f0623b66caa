"""A whole training step of an SAE or a transcoder with unit atoms, by kernels alone."""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.kernels.exchange import LatentExchange
from saelab.kernels.sizes import ceil_div
from saelab.kernels.torch.pairs import LatentPairs, Slices
from saelab.kernels.triton.codes.jump import JumpCodes
from saelab.kernels.triton.codes.pursuit import PursuitCodes
from saelab.kernels.triton.encode import Product
from saelab.kernels.triton.select.ties import TieFactors
from saelab.kernels.triton.step.adam import (
    advance_rates,
    move_parameter,
    scale_kernel,
    step_kernel,
    tokens_since,
)
from saelab.kernels.triton.step.aux_k import AuxStep, Extra
from saelab.kernels.triton.step.averaged import AveragedGradients
from saelab.kernels.triton.step.codes import empty_codes, missed_by
from saelab.kernels.triton.step.gradients import Sums, slice_kernel
from saelab.kernels.triton.step.norm import norm_kernel
from saelab.kernels.triton.step.offset import Offset
from saelab.kernels.triton.step.rules import Launch, Rules
from saelab.kernels.triton.step.streams import on, wait
from saelab.kernels.triton.step.thresholds import Thresholds
from saelab.kernels.triton.weights import Weights


class Step:
    """One step's memory and launches; every tensor is allocated once and has a fixed address.

    Attributes:
        offset: the rows of the step, and what does not depend on the latents.
        mse_sum: squared error per row of the last step.
        errors: `[group]`, the same for each group.
        error: the loss's error: their sum, weighted by the groups' shares.
        gradient_norm: norm of all gradients in the last step, before clipping; 0 without a limit.
        exchange: reaches the processes that hold the other latents, if there are some.
        thresholds: learns the latents' own thresholds, if they have some.
        averaged: the gradients of all replicas, if there are several.
        n_rows: rows of a batch of all replicas.
    """

    def __init__(
        self,
        weights: Weights,
        rules: Rules,
        batch: int,
        launch: Launch,
        exchange: LatentExchange,
    ) -> None:
        m, d_in = weights.enc.value.shape
        widest = max(d_in, weights.dec.value.shape[1])
        self.weights, self.rules, self.launch = weights, rules, launch.fit(widest, m)
        self.rule, self.exchange = rules.sae, exchange
        self.averaged = AveragedGradients(weights, exchange)
        self.n_rows = batch * exchange.replicas.count
        self.offset = Offset(weights, batch, centres=self.rule.centres)
        self.x, self.target = self.offset.x, self.offset.target
        self.product = Product(self.x, weights, self.rule)
        self.pre_acts = self.product.found.values
        factors = TieFactors(self.offset.centred, weights.enc.copy, weights.b_enc.copy)
        self.codes = empty_codes(self.target, factors, rules, exchange)
        self.mse_sum, self.gradient_norm = (weights.scale.new_zeros(()) for _ in range(2))
        self.shares = weights.scale.new_tensor(self.rule.shares)
        self.errors, self.error = torch.zeros_like(self.shares), self.mse_sum.clone()
        jump = self.rule.jump
        self.thresholds = None if jump is None else Thresholds(weights.learned, jump, batch)
        self.share, self.rates = weights.scale.new_ones(1), weights.scale.new_empty(3)
        shard = exchange.shard
        latents = (0, 1) if shard is None else (shard.rank, shard.size)
        self.draw = weights.step, rules.adam.seed % 2**32, *latents
        self.chunks = ceil_div(widest, self.launch.columns)
        self.norms = weights.scale.new_empty(m, self.chunks)
        self.to_input = weights.scale.new_empty(ceil_div(m, self.launch.latents), d_in)

    def run(self, side: torch.cuda.Stream | None = None, aux: AuxStep | None = None) -> None:
        """Do one step on `x`, with AuxK if given.

        With a second stream, independent parts overlap.
        """
        self.begin(side)
        self.finish(side, aux)

    def begin(self, side: torch.cuda.Stream | None = None) -> None:
        """The step up to the pre-activations."""
        on_side = on(side)
        wait(side, None)
        with on_side:
            advance_rates(self.weights, self.rules.adam, self.rates)
        self.offset.centre()
        self.encode()
        wait(None, side)

    def finish(self, side: torch.cuda.Stream | None = None, aux: AuxStep | None = None) -> None:
        """The step after the pre-activations; the processes' parts are summed beside the sort."""
        alone = self.exchange.shard is None
        if not alone and (aux or self._clips or self.thresholds or self.n_rows > len(self.x)):
            side = None  # These exchange numbers, while which no other stream may work.
        on_side, sorting = on(side), side if alone else None
        self.select()
        wait(sorting, None)
        with on(sorting):
            pairs, slices = self.invert()
            sorted_ = None if sorting is None else sorting.record_event()
        self.decode()
        if aux is None:
            wait(side, None)
            with on_side:
                self._sum_window(pairs)
                columns = self.sum_errors()
        else:
            # On this stream: AuxK needs the errors, and runs while the other stream sorts.
            columns = self.sum_errors()
            self.run_aux(aux, self.averaged.fire(*self.codes.kept()), side)
        if sorted_ is not None:
            torch.cuda.current_stream().wait_event(sorted_)
        if aux is not None:
            self._sum_window(pairs)
        sums, extra = self.sum_slices(pairs, slices), None if aux is None else aux.extra
        sums, extra = self.averaged.mean(sums, extra, self.codes.kept, self._visit)
        if self.rules.clip_norm is not None:
            wait(None, side)
            self.clip(sums, columns, extra)
        self.update(sums, extra)
        wait(None, side)
        self.move_vectors(columns)
        if self.weights.usage is not None:
            self.weights.usage.follow_(*self.codes.kept(), len(self.x))

    def run_aux(
        self, aux: AuxStep, codes: tuple[Tensor, Tensor], side: torch.cuda.Stream | None = None
    ) -> None:
        """AuxK's part; `codes` are values and indices of the active codes."""
        centred, residual = self.revivable(), self.missed()
        z, n_dead = aux.choose(codes, centred, self.pre_acts)
        missed = aux.run(z, residual, centred, side)
        with on(side):
            mean = self.exchange.mean(residual.sum(0, dtype=torch.float32) / len(residual))
            aux.measure(missed, n_dead, (self.mse_sum - mean.square().sum()) * len(self.x))
        wait(None, side)

    def encode(self) -> None:
        """Every pre-activation."""
        self.product.run(self.offset.centred)

    def select(self) -> None:
        """Codes from pre-activations."""
        self.codes.select(self.product.found, self.weights)

    def invert(self) -> tuple[LatentPairs, Slices]:
        """The codes in the latents' order."""
        pairs = self.codes.invert(len(self.weights.scale))
        if self.codes.k == 0:
            pairs = replace(pairs, rows=self.codes.error_rows.index_select(0, pairs.order))
        return pairs, self.launch.slices(pairs, twice=self._clips)

    def decode(self) -> None:
        """The errors, and the gradient of the codes."""
        self.codes.decode(self.offset.wanted, self.weights.dictionary, factor=self.factor)

    def _sum_window(self, pairs: LatentPairs) -> None:
        if self.thresholds is not None:
            assert isinstance(self.codes, JumpCodes)
            self.thresholds.sum_window(self.codes, pairs, self.exchange)

    def sum_errors(self) -> Float[Tensor, " d_out"]:
        """The errors of the batch, and the gradient of the decoder's bias; of all replicas."""
        residual = self.codes.residual
        self.exchange.mean(torch.div(residual.errors.sum((0, 1)), len(self.x), out=self.errors))
        self.mse_sum.copy_(self.errors[0 if self.rule.wider else -1])
        self.error.copy_(self.errors @ self.shares)
        rows = residual.residual[:: self.rule.groups]
        if isinstance(self.codes, PursuitCodes):
            rows = self.codes.to_bias
        columns = self.offset.learn(rows)
        if self.offset.slope is not None:
            self.exchange.mean(self.offset.slope)
        return self.exchange.mean(columns)

    def revivable(self) -> Float[Tensor, "batch d_in"]:
        """What dead latents' encoders read: what the others do, or what a pursuit left."""
        return -self.missed() if self.rule.pursues else self.offset.centred

    def missed(self) -> Float[Tensor, "batch d_out"]:
        """The error of the SAE's own reconstruction, among all errors in the loss."""
        return missed_by(self.codes, self.rule)

    def sum_slices(self, pairs: LatentPairs, slices: Slices) -> Sums:
        """Sum the pairs of the split latents, slice by slice."""
        capacity = len(slices.latent)
        sums, scalars = (self.norms.new_empty(capacity, n) for n in (sum(self._widths), 3))
        ours, out = self.codes, self.codes.residual
        rows = ours.error_rows if pairs.rows is None else pairs.rows
        codes = (ours.values, out.gradient, rows, out.residual, self.offset.centred)
        slice_kernel[(capacity * self.chunks,)](
            pairs.order, pairs.offsets, *codes, slices.first, slices.latent, sums, scalars,
            capacity, len(self.norms), *self._widths, SLICE=slices.size, **self._shape,
        )  # fmt: skip
        return Sums(pairs.order, pairs.offsets, *codes, slices.first, sums, scalars)

    def _visit(self, kernel: Any, sums: Sums, extra: Extra | None, *out: Tensor) -> None:  # noqa: ANN401
        more = extra or Extra.nothing(self.norms)
        kernel[(len(self.to_input) * self.chunks,)](
            *sums, *more, *out, self.factor, len(self.norms), *self._widths,
            LATENTS=self.launch.latents, EXTRA=extra is not None, **self._shape,
        )  # fmt: skip

    def clip(self, sums: Sums, columns: Float[Tensor, " d_out"], extra: Extra | None) -> None:
        """The norm of all gradients after the projection, and the clipping factor.

        Every latent is visited twice, since Adam needs the norm first; see `Launch.again`.
        """
        assert self.rules.clip_norm is not None
        squares = self.norms.new_empty(len(self.to_input), self.chunks)
        to_bias = self.norms.new_empty(len(self.norms))
        self._visit(norm_kernel, sums, extra, squares, to_bias)
        enc, centres = self.weights.enc.value, self.rule.centres
        through = self.exchange.sum(enc.T @ to_bias) if centres else None
        moved = self.offset.gradients(columns, through)
        vectors = [self.factor * found.residual - found.minus for found in moved]
        further = sum(vector.square().sum() for vector in vectors)
        if self.thresholds is not None:
            further = further + self.exchange.sum(self.thresholds.gradient.square().sum())
        total = self.exchange.sum(squares.sum()) + further
        self.gradient_norm.copy_(total.clamp_min(0).sqrt())
        self.share.copy_((self.rules.clip_norm / (self.gradient_norm + 1e-6)).clamp_max(1))

    def update(self, sums: Sums, extra: Extra | None) -> None:
        """Update both matrices, the encoder's bias and the dead counts, one visit per latent."""
        w, more = self.weights, extra or Extra.nothing(self.norms)
        kept, wider = self.codes.kept(), self.rule.wider
        since = tokens_since(*kept, w.since_fired, self.n_rows) if wider else None
        step_kernel[(len(self.to_input) * self.chunks,)](
            *sums, w.scale, self.norms, *w.dec.all, *w.enc.all, *w.b_enc.all, w.since_fired,
            self.to_input, *more, self.rates, *self.draw, self.share, self.factor,
            self.n_rows, len(self.norms), *self._widths, LATENTS=self.launch.latents,
            EXTRA=extra is not None, CLIP=self._clips, DECAY=self.rules.adam.weight_decay > 0,
            **self.rules.adam.constants, **self._shape,
        )  # fmt: skip
        if since is not None:
            # The kernel also counted the codes that are not the SAE's own.
            w.since_fired.copy_(since)
        self.averaged.note_(w.since_fired)

    def move_vectors(self, columns: Float[Tensor, " d_out"]) -> None:
        """Update what is outside of the latents, the atoms' scales, and thresholds."""
        w, m = self.weights, len(self.norms)
        through = self.exchange.sum(self.to_input.sum(0)) if self.rule.centres else None
        options = self.rates, self.share if self._clips else None, self.rules.adam
        for found in self.offset.gradients(columns, through):
            move_parameter(*found, self.factor, *options)
        if w.W_skip is not None:
            w.W_skip.copy.copy_(w.W_skip.value)
        if not self.rule.tied:
            scale_kernel[(ceil_div(m, 256),)](self.norms, w.scale, m, CHUNKS=self.chunks, BLOCK=256)
        if self.rule.pursues:
            w.make_unit_()
        if self.thresholds is not None:
            gradient, learned = self.thresholds.gradient, w.learned
            move_parameter(learned, gradient, torch.zeros_like(gradient), 1.0, *options)
            learned.value.clamp_min_(0)

    @property
    def factor(self) -> float:
        """The factor by which the residual becomes the loss's gradient by x_hat."""
        return 2 / (len(self.x) * self.rules.total_variance)

    @property
    def _clips(self) -> bool:
        return self.rules.clip_norm is not None

    @property
    def _widths(self) -> tuple[int, int]:
        """The columns of the decoder's and of the encoder's rows."""
        return self.target.shape[1], self.x.shape[1]

    @property
    def _shape(self) -> dict[str, int | bool]:
        n = self.launch
        d_out, d_in = self._widths
        return {
            "k": self.codes.k,
            "GROUPS": self.rule.groups,
            "COLUMNS": n.columns,
            "PAIRS": n.pairs,
            "EVEN": d_out == d_in and d_out % n.columns == 0,
            "SQUARE": d_out == d_in,
            "TIED": 2 if self.rule.pursues else int(self.rule.tied),
            "num_warps": max(1, n.columns // 256),
            "num_stages": 1,
        }
