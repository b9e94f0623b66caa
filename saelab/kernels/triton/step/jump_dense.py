"""JumpReLU's gradients by dense products, for batches with very many active entries."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.kernels.torch.pairs import LatentPairs
from saelab.kernels.triton.step.aux_k import AuxStep, Extra, product_
from saelab.kernels.triton.step.step import Step

ROWS = 1024
"""Rows whose float32 copies are in memory at a time."""


@dataclass(frozen=True)
class DenseGradients:
    """Results of all entries of a batch.

    Attributes:
        z: the codes.
        extra: the gradients, in the form that the latent-major kernels add to theirs.
        window: for each latent's entries in the window, the sum of their gradients, and their
            number.
        n_on: number of entries that are on.
        fired: latents with an active code.
    """

    z: Float[Tensor, "batch d_sae"]
    extra: Extra
    window: Float[Tensor, "2 d_sae"]
    n_on: Float[Tensor, ""]
    fired: Bool[Tensor, " d_sae"]


def finish_dense(step: Step, aux: AuxStep | None) -> Float[Tensor, "batch d_sae"]:
    """`Step.finish` without memory for the entries, for thresholds; returns all latents' codes."""
    thresholds, codes, x = step.thresholds, step.codes, step.offset.wanted
    assert thresholds is not None
    done = dense_gradients(step)
    thresholds.slope(done.window, done.n_on, step.exchange)
    firing = step.averaged.fire(done.fired.float(), done.extra.slots)
    offsets = torch.zeros(len(done.fired) + 1, dtype=torch.int32, device=x.device)
    pairs = LatentPairs(torch.zeros_like(codes.indices, dtype=torch.int64), offsets)
    sums = step.sum_slices(pairs, step.launch.slices(pairs, twice=False))
    columns = step.sum_errors()
    if aux is not None:
        step.run_aux(aux, firing)
        _add(done.extra, aux.extra)
    for gradient in (done.extra.to_dec, done.extra.to_enc, done.extra.scalars):
        step.exchange.mean(gradient)
    if step.rules.clip_norm is not None:
        step.clip(sums, columns, done.extra)
    step.update(sums, done.extra)
    step.weights.since_fired.masked_fill_(firing[0] > 0, 0)
    step.move_vectors(columns)
    return done.z


def _add(extra: Extra, more: Extra) -> None:
    """Add the gradients of some latents, which have another slope, to those of all."""
    (some,) = (more.slots >= 0).nonzero(as_tuple=True)
    places, ratio = more.slots[some].long(), more.slope / extra.slope
    for whole, part in (
        (extra.to_dec, more.to_dec),
        (extra.to_enc, more.to_enc),
        (extra.scalars, more.scalars),
    ):
        whole.index_add_(0, some, ratio * part[places])


def dense_gradients(step: Step) -> DenseGradients:
    """The same as the kernels compute, from five dense products; fills the step's residual too."""
    assert step.thresholds is not None
    x, inputs = step.offset.wanted, step.offset.centred
    pre_acts, weights, thresholds = step.pre_acts, step.weights, step.weights.learned.value
    out, factor, width = step.codes.residual, step.factor, step.thresholds.rules.width
    m, d = weights.dec.value.shape
    atoms = (weights.scale[:, None] * weights.dec.value).to(inputs.dtype)
    z = torch.where(pre_acts > thresholds, pre_acts, 0.0)
    error = weights.scale.new_empty(x.shape)
    product_(z, atoms, error)
    error = step.exchange.sum(error)
    error += weights.b_dec.value - x.float()
    out.residual.copy_(error)
    out.errors.zero_()
    out.errors[:, 0, 0] = error.square().sum(1)
    slopes = out.residual @ atoms.T
    window, scalars = thresholds.new_zeros(2, m), thresholds.new_zeros(m, 2)
    n_on, fired = thresholds.new_zeros(()), torch.zeros_like(thresholds, dtype=torch.bool)
    for start in range(0, len(x), ROWS):
        part = slice(start, start + ROWS)
        a, slope = pre_acts[part].float(), slopes[part]
        near = (a - thresholds).abs() < width / 2
        window[0] += torch.where(near, slope, 0.0).sum(0, dtype=torch.float32)
        window[1] += near.sum(0)
        on = a > thresholds
        slope.masked_fill_(~on, 0.0)
        scalars[:, 0] += slope.sum(0, dtype=torch.float32)
        scalars[:, 1] += (z[part].float() * slope).sum(0)
        n_on += on.sum()
        fired |= (z[part] != 0).any(0)
    window[0] *= factor
    to_dec, to_enc = (error.new_empty(m, n) for n in (d, inputs.shape[1]))
    product_(z.T, out.residual, to_dec)
    product_(slopes.T, inputs, to_enc)
    slots = torch.arange(m, dtype=torch.int32, device=x.device)
    extra = Extra(slots, to_dec, to_enc, scalars, n_on.new_full((1,), factor))
    return DenseGradients(z, extra, window, n_on, fired)
