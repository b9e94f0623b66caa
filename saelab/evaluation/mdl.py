"""Description length: the bits of a token's codes at a stated loss of fidelity."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.evaluation.inputs import Inputs, decoder
from saelab.evaluation.measurement import Line, Measurement
from saelab.evaluation.rows import Rows, Skipped, active_entries
from saelab.sae.base import AbstractSAE
from saelab.types import SparseCodes

BINS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Powers of two: each grid refines the one before, so bits only grow and errors only shrink."""
MOST_CHANNEL_BINS = 2**12
ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Level:
    """The codes rounded to `n_bins` values per sign.

    Attributes:
        bits: description length, bits per token.
        fvu: FVU of the reconstruction from the rounded codes.
    """

    n_bins: int
    bits: float
    fvu: float


@dataclass(frozen=True)
class DescriptionLength:
    """Bits per token to encode the codes (MDL-SAE, arXiv 2410.11179).

    Latents are treated as independent: DL = sum_i [H_b(p_i) + p_i H(bin | i fires)]. p_i is the
    share of tokens on which i fires, and H_b(p) = -p log2 p - (1-p) log2 (1-p). A value's bin is
    its sign and the position of |z| in n equal bins on (0, max_i]; a decoder reads the middle of
    the bin. Silence is not a bin: zeros stay zero. A latent with only one sign needs no bit for the
    sign. Lengths of SAEs can be compared only at equal fidelity, so the curve is given. The
    dictionary, written once for all text, is not counted.

    Attributes:
        n_tokens: number of rows counted.
        fvu: FVU of the reconstruction from the unrounded codes.
        tolerance: the FVU that rounding may add.
        curve: levels from one bin per sign to the first grid within the tolerance.
        chosen: the coarsest level within the tolerance; None if none is.
        dense_bits: bits of the reconstructed activations themselves at the chosen level's FVU: the
            summed entropies of all channels, each rounded to as many equal bins over its range as
            this FVU needs; None if 4,096 bins are not enough.
        bias_bits: bits by which the finite sample makes the chosen level look shorter, to first
            order (Miller and Madow: (used bins - 1) / (2 N ln 2) of every entropy).
    """

    n_tokens: int
    fvu: float
    tolerance: float
    curve: list[Level]
    chosen: Level | None
    dense_bits: float | None
    bias_bits: float


@torch.no_grad()
def description_length(
    rows: Rows, sae: AbstractSAE, *, tolerance: float
) -> DescriptionLength | Skipped:
    """The description length of a sample; grids are refined until FVU is within `tolerance`."""
    wanted = rows.wanted
    if bool((wanted == wanted[:1]).all()):
        return Skipped(f"The {len(rows)} rows are all the same, so there is no FVU.")
    fvu = _fvu(rows, rows.codes, sae)
    curve: list[Level] = []
    for n_bins in BINS:
        rounded = quantised(rows.codes, n_bins)
        curve.append(Level(n_bins, code_bits(rows.codes, n_bins), _fvu(rows, rounded, sae)))
        if curve[-1].fvu <= fvu + tolerance:
            break
    last = curve[-1]
    chosen = last if last.fvu <= fvu + tolerance else None
    return DescriptionLength(
        n_tokens=len(rows),
        fvu=fvu,
        tolerance=tolerance,
        curve=curve,
        chosen=chosen,
        dense_bits=None if chosen is None else channel_bits(wanted, chosen.fvu),
        bias_bits=entropy_bias(rows.codes, last.n_bins),
    )


def code_bits(codes: SparseCodes, n_bins: int) -> float:
    """Bits per token of the codes, with each value's sign and magnitude rounded to `n_bins`."""
    counts, fired = _counts(codes, n_bins)
    n = len(codes)
    p = fired.double() / n
    silence = -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)).sum()
    # sum_i p_i H(bin | i) = (sum_i n_i ln n_i - sum_ib c_ib ln c_ib) / N
    within = (torch.xlogy(fired.double(), fired.double()).sum() - _xlogx(counts)) / n
    return max(0.0, float(silence + within) / math.log(2))


def quantised(codes: SparseCodes, n_bins: int) -> SparseCodes:
    """The codes with every value at the middle of its bin; zeros stay zero.

    No value moves by more than its latent's largest magnitude over 2 n_bins.
    """
    largest = _largest(codes)[codes.indices]
    middle = (_bin(codes.values, largest, n_bins) + 0.5) / n_bins * largest
    return SparseCodes(codes.values.sign() * middle, codes.indices, codes.d_sae, codes.offsets)


def entropy_bias(codes: SparseCodes, n_bins: int) -> float:
    """Bits per token by which `code_bits` is too low on average, to first order in 1/N."""
    counts, fired = _counts(codes, n_bins)
    varies = int(((fired > 0) & (fired < len(codes))).sum())
    spread = len(counts) - int((fired > 0).sum())
    return (varies + spread) / (2 * len(codes) * math.log(2))


def channel_bits(x: Float[Tensor, "row d_in"], fvu: float) -> float | None:
    """Bits per row of x, with each channel rounded as coarsely as an FVU of `fvu` allows."""
    low, wide = x.amin(dim=0), (x.amax(dim=0) - x.amin(dim=0)).clamp_min(1e-30)
    variance = (x.double() - x.double().mean(dim=0)).pow(2).sum()
    n_bins = 1
    while n_bins <= MOST_CHANNEL_BINS:
        place = ((x - low) / wide * n_bins).long().clamp(0, n_bins - 1)
        error = (x - low - (place + 0.5) / n_bins * wide).double().pow(2).sum()
        if float(error) <= fvu * float(variance):
            return _channel_entropy(place, n_bins)
        n_bins *= 2
    return None


def _channel_entropy(place: Int[Tensor, "row d_in"], n_bins: int) -> float:
    n, d_in = place.shape
    channel = torch.arange(d_in, device=place.device) * n_bins
    counts = torch.bincount((place + channel).flatten(), minlength=d_in * n_bins)
    return max(0.0, float(d_in * math.log(n) - _xlogx(counts) / n) / math.log(2))


def _counts(codes: SparseCodes, n_bins: int) -> tuple[Int[Tensor, " used"], Int[Tensor, " d_sae"]]:
    """The count of each bin that occurs, over all latents, and the firings of each latent."""
    _, latent, value = active_entries(codes)
    place = _bin(value, _largest(codes)[latent], n_bins) + n_bins * (value < 0)
    _, counts = (latent * 2 * n_bins + place).unique(return_counts=True)
    return counts, codes.firing_counts()


def _bin(
    value: Float[Tensor, "*entry"], largest: Float[Tensor, "*entry"], n_bins: int
) -> Int[Tensor, "*entry"]:
    share = value.abs() / largest.clamp_min(torch.finfo(largest.dtype).tiny)
    return (share * n_bins).long().clamp(0, n_bins - 1)


def _largest(codes: SparseCodes) -> Float[Tensor, " d_sae"]:
    """Each latent's largest magnitude."""
    out = codes.values.new_zeros(codes.d_sae)
    magnitude = codes.values.abs().flatten()
    return out.scatter_reduce(0, codes.indices.flatten(), magnitude, "amax")


def _xlogx(counts: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    wide = counts.double()
    return torch.xlogy(wide, wide).sum()


def _fvu(rows: Rows, codes: SparseCodes, sae: AbstractSAE) -> float:
    """FVU of the reconstruction from rectangular codes, on the SAE's device."""
    device, x = sae.W_dec.device, rows.wanted
    error = 0.0
    for first in range(0, len(x), ROWS_AT_ONCE):
        part = slice(first, first + ROWS_AT_ONCE)
        values, indices = codes.values[part].to(device), codes.indices[part].to(device)
        x_hat = sae.decode(SparseCodes(values, indices, codes.d_sae), rows.x[part].to(device))
        error += float((x[part].double() - x_hat.double().cpu()).pow(2).sum())
    return error / float((x.double() - x.double().mean(dim=0)).pow(2).sum())


def _lines(d: DescriptionLength) -> Iterator[Line]:
    for level in d.curve:
        what = f"{level.n_bins} {'value' if level.n_bins == 1 else 'values'} a sign"
        yield what, f"{level.bits:.1f}", f"bits per token, at an FVU of {level.fvu:.4f}"
    if d.chosen is None:
        yield "chosen", "none", f"no grid keeps the FVU within {d.tolerance:g} of {d.fvu:.4f}"
        return
    yield "chosen", f"{d.chosen.bits:.1f}", f"the first within {d.tolerance:g} of FVU {d.fvu:.4f}"
    dense = "more" if d.dense_bits is None else f"{d.dense_bits:.1f}"
    yield "activations", dense, "bits of the channels themselves, rounded to the same FVU"
    yield "bias", f"{d.bias_bits:.2f}", f"bits that {d.n_tokens} tokens are too few to show"


def _measure(inputs: Inputs) -> DescriptionLength | Skipped:
    return description_length(inputs.rows, inputs.sae, tolerance=inputs.options.fvu_tolerance)


DESCRIPTION_LENGTH = Measurement(
    "description_length",
    "How short is the description?",
    _lines,
    measure=_measure,
    result=DescriptionLength,
    needs=(decoder,),
)
