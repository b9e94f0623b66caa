"""How well and how sparsely an SAE reconstructs: FVU, L0, dead latents."""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from saelab.evaluation.inputs import Inputs
from saelab.evaluation.measurement import Line, Measurement, Streamed
from saelab.types import Figures, SparseCodes

CENTRE_ROWS = 4096
"""Rows whose mean stands for that of all where each row's own error is judged."""
TOP_SHARE = 0.001
DISAGREE = 2.0
"""By what factor the mean over rows may differ from the ratio of sums without a word."""
MUCH = 0.25
"""A share of the variance that a thousandth of the rows should not hold."""


class Reconstruction:
    """Sums over any number of batches, in float64; the figures do not depend on the batching.

    FVU = sum ||x - x_hat||^2 / sum ||x - E x||^2, one ratio of sums with the mean of all rows
    (arXiv 2408.05147, section 4): 0 is perfect, 1 no better than the mean. A few rows with large
    norms can decide it. So beside it stand the mean and the median over rows of a row's own
    ||x - x_hat||^2 / ||x - m||^2, m the mean of the first 4,096 rows, in which every row counts
    alike; and the share of sum ||x - m||^2 that the largest thousandth of the rows holds.
    """

    def __init__(self, d_in: int, d_sae: int, device: torch.device) -> None:
        self.n = 0
        self.sum = torch.zeros(d_in, dtype=torch.float64, device=device)
        self.sum_sq, self.error, self.cosine = (
            torch.zeros((), dtype=torch.float64, device=device) for _ in range(3)
        )
        self.fired = torch.zeros(d_sae, dtype=torch.int64, device=device)
        self._first: list[Float[Tensor, "batch d_in"]] = []
        self._centre: Float64[Tensor, " d_in"] | None = None
        self._errors: list[Float64[Tensor, " batch"]] = []
        self._spreads: list[Float64[Tensor, " batch"]] = []

    def update(
        self, x: Float[Tensor, "batch d_in"], x_hat: Float[Tensor, "batch d_in"], codes: SparseCodes
    ) -> None:
        """Add a batch."""
        self.n += len(x)
        wide = x.double()
        errors = (wide - x_hat.double()).pow(2).sum(1)
        self.sum += wide.sum(dim=0)
        self.sum_sq += wide.pow(2).sum()
        self.error += errors.sum()
        self.cosine += torch.cosine_similarity(wide, x_hat.double(), dim=1).sum()
        self.fired += codes.firing_counts()
        self._errors.append(errors)
        if self._centre is None:
            self._first.append(x)
            if self.n >= CENTRE_ROWS:
                self._fix_centre()
        else:
            self._spreads.append((wide - self._centre).pow(2).sum(1))

    def _fix_centre(self) -> None:
        first = torch.cat(self._first).double()
        self._centre = first[:CENTRE_ROWS].mean(0)
        self._spreads, self._first = [(first - self._centre).pow(2).sum(1)], []

    def results(self) -> Figures:
        """The figures, by name.

        fvu, fvu_row_mean, fvu_row_median, top_share (of the largest thousandth of the rows),
        mse_sum (squared units of the activations), cosine, l0, dead, dense, d_sae, n_tokens.
        """
        if self._centre is None:
            self._fix_centre()
        variance = self.sum_sq - self.sum.pow(2).sum() / self.n
        frequency = self.fired.double() / self.n
        spread = torch.cat(self._spreads)
        # A row at the mean has no variance to explain; rounding decides what its quotient is.
        counted = spread > 1e-12 * spread.mean()
        own = (torch.cat(self._errors) / spread)[counted]
        largest = spread.topk(max(1, round(TOP_SHARE * self.n))).values.sum()
        return {
            "fvu": float(self.error / variance),
            "fvu_row_mean": float(own.mean()),
            "fvu_row_median": float(own.median()),
            "top_share": float(largest / spread.sum()),
            "mse_sum": float(self.error) / self.n,
            "cosine": float(self.cosine) / self.n,
            "l0": float(self.fired.sum()) / self.n,
            "dead": int((self.fired == 0).sum()),
            "dense": int((frequency > 0.1).sum()),
            "d_sae": len(self.fired),
            "n_tokens": self.n,
        }


def fvu_warning(figures: Mapping[str, float]) -> str | None:
    """One sentence where a few rows decide the FVU; None where they do not.

    Also None for figures from before rows were judged one by one.
    """
    if "top_share" not in figures:
        return None
    fvu, mean, share = (figures[name] for name in ("fvu", "fvu_row_mean", "top_share"))
    if share <= MUCH and max(fvu, mean) <= DISAGREE * min(fvu, mean):
        return None
    return (
        f"The FVU of {fvu:.4f} is that of a few rows: a thousandth of them hold {share:.1%} of the "
        f"variance; row by row it is {mean:.4f} in the mean, {figures['fvu_row_median']:.4f} in "
        "the median."
    )


def _lines(r: Figures) -> Iterator[Line]:
    """Figures from before rows were judged one by one have fewer lines."""
    yield "FVU", f"{r['fvu']:.4f}", "variance of the activations that it misses (0 is perfect)"
    if "top_share" in r:
        rows = f"{r['fvu_row_mean']:.4f}, {r['fvu_row_median']:.4f}"
        yield "FVU, token by token", rows, "mean and median over tokens, each of which counts alike"
        seen = f"of {r['left_out'] + r['n_tokens']:.0f} tokens; as in training, they pass unchanged"
        yield "left out", f"{r['left_out']:.0f}", seen
    yield "L0", f"{r['l0']:.2f}", "latents active per token"
    yield "dead latents", f"{r['dead']} of {r['d_sae']}", f"silent on {r['n_tokens']} tokens"


def _sums(inputs: Inputs) -> Streamed:
    sums = Reconstruction(inputs.sae.d_out, inputs.sae.d_sae, inputs.device)
    return Streamed(
        lambda batch: sums.update(batch.rows.wanted, batch.x_hat, batch.rows.codes),
        lambda: sums.results() | {"left_out": inputs.n_left_out},
    )


def _warnings(r: Figures) -> list[str]:
    return [warning] if (warning := fvu_warning(r)) else []


RECONSTRUCTION = Measurement(
    "reconstruction", "How faithful is it?", _lines, stream=_sums, suite="core", warnings=_warnings
)
