"""Description lengths of many SAEs at one fidelity, by which width and k are chosen."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab import drawing
from saelab.config import UsageError
from saelab.console import progress
from saelab.evaluation.mdl import BINS, ROWS_AT_ONCE, code_bits, quantised
from saelab.lm.load import resolve_device
from saelab.sae.base import AbstractSAE
from saelab.training.config import TrainConfig
from saelab.training.run import Run
from saelab.training.source import Source
from saelab.types import SparseCodes

N_ROWS = 20_000
LITTLE = 1e-12
"""Of the variance: a smaller error counts as none."""


@dataclass(frozen=True)
class RunLength:
    """An SAE's description length at the common fidelity, in bits per token.

    Attributes:
        k: as configured; None for variants without one.
        fvu: FVU without rounding.
        n_bins: the precision of the codes: values per sign, with which `bits` is smallest.
        code_bits: for the rounded codes.
        rest_bits: for what is missing to the common FVU.
        dead: latents that fire on none of the rows.
    """

    name: str
    d_sae: int
    k: float | int | None
    l0: float
    fvu: float
    n_bins: int
    code_bits: float
    rest_bits: float
    dead: int

    @property
    def bits(self) -> float:
        """The description length."""
        return self.code_bits + self.rest_bits


@dataclass(frozen=True)
class LengthCurve:
    """Description lengths of a sweep's SAEs (MDL-SAE, arXiv 2410.11179).

    The paper compares lengths at one fidelity, and leaves out what does not reach it. Here an SAE
    with a larger FVU pays for the rest, so all can be compared: DL = DL(codes) + DL(x | codes). The
    second part is the rate that a Gaussian source with the error's covariance needs for the common
    FVU (reverse water-filling), which no source with this covariance exceeds. This part is ours. A
    dictionary, written once for all text, is not counted.

    Attributes:
        fvu: the common FVU: the lowest of all SAEs, if none was given.
        n_rows: rows, which no training read.
        runs: one for each SAE, in the order given.
        row_bits: bits for the rows themselves as a Gaussian source, without any SAE.
    """

    fvu: float
    n_rows: int
    runs: tuple[RunLength, ...]
    row_bits: float

    @property
    def best(self) -> RunLength:
        """The SAE with the shortest description."""
        return min(self.runs, key=lambda run: run.bits)

    def values(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"best": self.best.name}

    figure = drawing.figure


@torch.no_grad()
def length_curve(
    runs: Sequence[Run], *, fvu: float | None = None, device: str | torch.device = "auto"
) -> LengthCurve:
    """The description length of every run's SAE on the same rows of the store, held back.

    Args:
        runs: of one store and site.
        fvu: the common FVU; default: the lowest that one of them reaches.
        device: where the SAEs run.

    Raises:
        UsageError: the runs have different stores, sites or rows held back, or are transcoders.
    """
    x = _rows(runs)
    variance = float((x.double() - x.double().mean(dim=0)).pow(2).sum())
    if variance <= 0:
        raise UsageError(f"The {len(x)} rows are all the same, so there is no FVU.")
    place = resolve_device(device)
    saes = [run.load_sae(str(place)) for run in runs]
    codes = [_codes(sae, x) for sae in saes]
    plain = [
        float(_error(sae, z, x).trace()) / variance for sae, z in zip(saes, codes, strict=True)
    ]
    common = min(plain) if fvu is None else fvu
    allowed = common * variance / len(x)
    found = []
    with progress("Description length", len(runs), "SAEs") as bar:
        for run, sae, z, own in zip(runs, saes, codes, plain, strict=True):
            found.append(_length(run, (sae, z, x), own, allowed))
            bar.advance(1, f"{run.name} {found[-1].bits:.1f} bits")
    centred = x.double() - x.double().mean(dim=0)
    return LengthCurve(
        common, len(x), tuple(found), gaussian_bits(centred.T @ centred / len(x), allowed)
    )


def check_comparable(configs: Mapping[str, TrainConfig]) -> None:
    """Refuse SAEs whose description lengths cannot be compared, before they are trained.

    Raises:
        UsageError: they have different stores, sites or rows held back, or are transcoders.
    """
    if not configs:
        raise UsageError("There is no run to describe.")
    (one, first), *_ = configs.items()
    for name, config in configs.items():
        if config.target_site is not None:
            raise UsageError(f"{name} is a transcoder, whose codes describe another site.")
        for option in ("activations", "site", "order_seed"):
            if getattr(config, option) != getattr(first, option):
                raise UsageError(
                    f"{name} has another {option.replace('order_seed', 'data_seed')} than {one}; "
                    "description lengths are compared on the same rows."
                )


def _rows(runs: Sequence[Run]) -> Float[Tensor, "row d_in"]:
    check_comparable({str(run.path): run.config for run in runs})
    source = Source([runs[0].config_now().with_every_row()], torch.device("cpu"))
    x = source.calibration_rows()
    return x[runs[0].domain.within(x, None)][:N_ROWS]


def _codes(sae: AbstractSAE, x: Float[Tensor, "row d_in"]) -> SparseCodes:
    parts = [sae.encode(part.to(sae.W_dec.device)).rectangular() for part in x.split(ROWS_AT_ONCE)]
    return SparseCodes.stack(parts)


def _length(
    run: Run,
    coded: tuple[AbstractSAE, SparseCodes, Float[Tensor, "row d_in"]],
    fvu: float,
    allowed: float,
) -> RunLength:
    sae, codes, x = coded
    precisions = []
    for n_bins in BINS:
        error = _error(sae, quantised(codes, n_bins), x) / len(x)
        precisions.append((n_bins, code_bits(codes, n_bins), gaussian_bits(error, allowed)))
    n_bins, bits, rest = min(precisions, key=lambda found: found[1] + found[2])
    return RunLength(
        name=run.name,
        d_sae=sae.d_sae,
        k=sae.config.sparsity.k,
        l0=codes.mean_l0(),
        fvu=fvu,
        n_bins=n_bins,
        code_bits=bits,
        rest_bits=rest,
        dead=int((codes.firing_counts() == 0).sum()),
    )


def _error(
    sae: AbstractSAE, codes: SparseCodes, x: Float[Tensor, "row d_in"]
) -> Float[Tensor, "d_in d_in"]:
    """The error's second moments, summed over the rows, in float64."""
    total = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for first in range(0, len(x), ROWS_AT_ONCE):
        part = slice(first, first + ROWS_AT_ONCE)
        device = sae.W_dec.device
        values, indices = codes.values[part].to(device), codes.indices[part].to(device)
        some, here = SparseCodes(values, indices, codes.d_sae), x[part].to(device)
        error = (here - sae.decode(some, here)).double().cpu()
        total += error.T @ error
    return total


def gaussian_bits(covariance: Float[Tensor, "d d"], allowed: float) -> float:
    """The rate of a Gaussian source at a squared error of `allowed` per row, in bits per row.

    R(D) = sum_i max(0, log2(lambda_i / theta) / 2), sum_i min(lambda_i, theta) = D (Cover and
    Thomas, theorem 10.3.3). It is 0 where the source varies less than `allowed`.
    """
    eigenvalues = torch.linalg.eigvalsh(covariance).clamp_min(0).flip(0)
    total = float(eigenvalues.sum())
    if total <= allowed or total <= LITTLE:
        return 0.0
    if allowed <= 0:
        return math.inf
    low, high = 0.0, float(eigenvalues[0])
    for _ in range(200):
        theta = (low + high) / 2
        if float(eigenvalues.clamp_max(theta).sum()) > allowed:
            high = theta
        else:
            low = theta
    return float((eigenvalues / low).clamp_min(1).log2().sum() / 2)
