"""The decoder's rows alone: norms, duplicates, and the alignment of encoder and decoder."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from saelab.evaluation.inputs import Inputs, decoder
from saelab.evaluation.measurement import Line, Measurement
from saelab.evaluation.rows import Skipped
from saelab.sae.base import AbstractSAE

COLLINEAR = 0.95
CELLS_AT_ONCE = 2**24
SHOWN = 10
ROWS_AT_ONCE = 2**14
"""Latents whose rows are widened together."""
TRIED = 1024
"""Rows of the product by which its time is judged."""
MOST_COMPARED = 2**18
"""With more latents, comparing all pairs takes longer than all other measurements together."""
UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class DictionaryFigures:
    """Decoder rows w_i = W_dec[i] and encoder columns e_i = W_enc[:, i].

    The cosine with a zero row is 0. A duplicate is a pair with cos above the limit; if codes are
    signed, w and -w are the same feature, and |cos| counts.

    Attributes:
        norm_min, norm_mean, norm_max: statistics of ||w_i||.
        not_unit: latents with | ||w_i|| - 1 | > 0.001; legitimate for variants without unit norm.
        limit: the cosine above which two rows are duplicates (0.95).
        signed: whether opposite rows count as duplicates.
        duplicates: pairs i < j above the limit, over all latents.
        in_duplicates: latents in at least one such pair.
        opposites: pairs with cos below minus the limit, if codes are not signed.
        nearest_mean: mean over latents of the largest cosine with another latent (MCS of a
            dictionary with itself); |cos| if signed.
        closest: the pairs with the highest cosines: latent, latent, cosine.
        encoder_mean, encoder_min: statistics of cos(e_i, w_i). None if the atoms encode too, if
            there is no encoder, and for transcoders, whose two directions belong to different
            sites.
        encoder_collinear: latents with cos(e_i, w_i) above the limit; None in the same cases.
    """

    norm_min: float
    norm_mean: float
    norm_max: float
    not_unit: int
    limit: float
    signed: bool
    duplicates: int
    in_duplicates: int
    opposites: int
    nearest_mean: float
    closest: list[tuple[int, int, float]]
    encoder_mean: float | None
    encoder_min: float | None
    encoder_collinear: int | None


@torch.no_grad()
def dictionary_figures(sae: AbstractSAE, *, signed: bool) -> DictionaryFigures:
    """The figures of a trained SAE; `signed` says whether its codes may be negative.

    It costs d_sae^2 * d_in / 2 multiplications, in blocks of rows; cosines are float32.
    """
    W_dec = sae.W_dec.detach()
    parts = W_dec.split(ROWS_AT_ONCE)
    norms = torch.cat([part.double().norm(dim=1) for part in parts])
    unit = torch.cat([F.normalize(part.float(), dim=1) for part in parts])
    pairs = _Pairs(unit, signed=signed)
    n_rows = max(1, CELLS_AT_ONCE // len(W_dec))
    for first in range(0, len(W_dec), n_rows):
        pairs.compare(first, n_rows)
    encoder = _encoder_cosines(sae)
    return DictionaryFigures(
        norm_min=float(norms.min()),
        norm_mean=float(norms.mean()),
        norm_max=float(norms.max()),
        not_unit=int(((norms - 1).abs() > UNIT_TOLERANCE).sum()),
        limit=COLLINEAR,
        signed=signed,
        duplicates=pairs.above,
        in_duplicates=int(pairs.involved.sum()),
        opposites=pairs.below,
        nearest_mean=float(pairs.nearest.clamp_min(-1).mean()) if len(W_dec) > 1 else 0.0,
        closest=pairs.closest,
        encoder_mean=None if encoder is None else float(encoder.mean()),
        encoder_min=None if encoder is None else float(encoder.min()),
        encoder_collinear=None if encoder is None else int((encoder > COLLINEAR).sum()),
    )


def dictionary_cost(sae: AbstractSAE) -> tuple[int, float]:
    """Bytes and seconds of `dictionary_figures`, from shapes and the speed of a small product."""
    m, d = sae.W_dec.shape
    part = torch.randn(TRIED, d, device=sae.W_dec.device)
    started = 0.0
    for _ in range(2):
        started = time.perf_counter()
        float((part @ part.T).sum())
    seconds = (time.perf_counter() - started) * (m / TRIED) ** 2 / 2
    return 2 * 4 * m * d + 6 * 4 * CELLS_AT_ONCE, seconds


class _Pairs:
    """Every pair of unit rows, in blocks of rows; each pair i < j is counted once."""

    def __init__(self, unit: Float[Tensor, "d_sae d_in"], *, signed: bool) -> None:
        self.unit, self.signed = unit, signed
        self.above = self.below = 0
        self.involved = torch.zeros(len(unit), dtype=torch.bool, device=unit.device)
        self.nearest = torch.full((len(unit),), -torch.inf, dtype=unit.dtype, device=unit.device)
        self.closest: list[tuple[int, int, float]] = []

    def compare(self, first: int, n_rows: int) -> None:
        """Compare `n_rows` rows from `first` on with all later rows."""
        block = self.unit[first : first + n_rows] @ self.unit[first:].T
        score = block.abs() if self.signed else block
        here = torch.arange(len(block), device=block.device)
        upper = torch.arange(block.shape[1], device=block.device) > here[:, None]
        found = (score > COLLINEAR) & upper
        self.above += int(found.sum())
        if not self.signed:
            self.below += int(((block < -COLLINEAR) & upper).sum())
        self.involved[first : first + len(block)] |= found.any(dim=1)
        self.involved[first:] |= found.any(dim=0)
        score = score.masked_fill(~upper, -torch.inf)
        self._nearest(first, score)
        self._closest(first, score)

    def _nearest(self, first: int, score: Float[Tensor, "here later"]) -> None:
        mine, theirs = self.nearest[first : first + len(score)], self.nearest[first:]
        torch.maximum(mine, score.amax(dim=1), out=mine)
        torch.maximum(theirs, score.amax(dim=0), out=theirs)

    def _closest(self, first: int, score: Float[Tensor, "here later"]) -> None:
        n = min(SHOWN, score.numel())
        values, places = score.flatten().topk(n)
        for value, place in zip(values.tolist(), places.tolist(), strict=True):
            i, j = divmod(place, score.shape[1])
            if value > -torch.inf:
                self.closest.append((first + i, first + j, value))
        self.closest = sorted(self.closest, key=lambda pair: -pair[2])[:SHOWN]


def _encoder_cosines(sae: AbstractSAE) -> Float[Tensor, " d_sae"] | None:
    """cos(e_i, w_i), if the encoder is a separate parameter and reads what is reconstructed."""
    W_enc = dict(sae.named_parameters()).get("W_enc")
    if W_enc is None or sae.is_transcoder or len(W_enc) != sae.W_dec.shape[1]:
        return None
    sides = (each.detach().split(ROWS_AT_ONCE) for each in (W_enc.T, sae.W_dec))
    pairs = zip(*sides, strict=True)
    return torch.cat([F.cosine_similarity(a.double(), b.double(), dim=1) for a, b in pairs])


def _lines(w: DictionaryFigures) -> Iterator[Line]:
    norms = f"{w.norm_min:.3g} to {w.norm_max:.3g}"
    yield "decoder norms", norms, f"{w.not_unit} latents further than 0.001 from 1"
    closeness = "|cosine|" if w.signed else "cosine"
    pairs = f"pairs of decoder rows with a {closeness} above {w.limit}"
    yield "duplicates", str(w.duplicates), f"{pairs}, {w.in_duplicates} latents"
    if not w.signed:
        yield "opposites", str(w.opposites), f"pairs with a cosine below -{w.limit}"
    yield "nearest", f"{w.nearest_mean:.3f}", f"mean over latents of the largest {closeness}"
    if w.encoder_mean is not None:
        rest = f"lowest {w.encoder_min:.3f}, {w.encoder_collinear} above {w.limit}"
        yield "encoder and decoder", f"{w.encoder_mean:.3f}", f"mean cosine of a latent's; {rest}"


def _measure(inputs: Inputs) -> DictionaryFigures | Skipped:
    d_sae = inputs.sae.d_sae
    if d_sae > MOST_COMPARED:
        return Skipped(
            f"Its {d_sae:,} latents are {d_sae**2:.1e} pairs; up to {MOST_COMPARED:,} latents are "
            "compared with each other."
        )
    return dictionary_figures(inputs.sae, signed=inputs.found["density"].signed)


DICTIONARY = Measurement(
    "dictionary",
    "How are the latents used?",
    _lines,
    measure=_measure,
    result=DictionaryFigures,
    suite="core",
    after=("density",),
    needs=(decoder,),
)
