"""How well and how sparsely an SAE reconstructs: FVU, L0, dead latents."""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from saelab.evaluation.inputs import Batch, Inputs
from saelab.evaluation.measurement import Line, Measurement, Streamed
from saelab.types import Figures, OuterFit, SparseCodes

CENTRE_ROWS = 4096
"""Number of rows whose mean replaces the mean of all rows in each row's own error."""
TOP_SHARE = 0.001
DISAGREE = 2.0
"""Factor by which the mean over rows and the ratio of sums may differ without a warning."""
OF_SITE = "fvu_site_"
"""The FVU at one of several sites has this name and its number, from 1 on."""
MUCH = 0.25
"""A share of the variance that the largest thousandth of the rows should not reach."""


class Reconstruction:
    """Sums over any number of batches, in float64; the figures do not depend on the batching.

    FVU = sum ||x - x_hat||^2 / sum ||x - E x||^2 is one ratio of sums with the mean of all rows
    (arXiv 2408.05147, section 4): 0 is perfect, 1 no better than the mean. A few rows with large
    norms can decide it. Therefore two more figures count every row equally: the mean and the median
    over rows of ||x - x_hat||^2 / ||x - m||^2, where m is the mean of the first 4,096 rows. A last
    figure is the share of sum ||x - m||^2 in the largest thousandth of the rows.

    An SAE that reconstructs u u^T of unit rows u (`outer`) has the same figures of these matrices,
    with Frobenius norms and inner products. Only their mean, one matrix, is formed.
    """

    def __init__(self, d_in: int, d_sae: int, device: torch.device, *, outer: bool = False) -> None:
        self.n, self.outer = 0, outer
        shape = (d_in, d_in) if outer else (d_in,)
        self.sum = torch.zeros(shape, dtype=torch.float64, device=device)
        self.sum_sq, self.error, self.cosine = (
            torch.zeros((), dtype=torch.float64, device=device) for _ in range(3)
        )
        self.fired = torch.zeros(d_sae, dtype=torch.int64, device=device)
        self._first: list[Float[Tensor, "batch d_in"]] = []
        self._centre: Float64[Tensor, "*d_in"] | None = None
        self._errors: list[Float64[Tensor, " batch"]] = []
        self._spreads: list[Float64[Tensor, " batch"]] = []

    def update(
        self, x: Float[Tensor, "batch d_in"], x_hat: Float[Tensor, "batch d_in"], codes: SparseCodes
    ) -> None:
        """Add a batch."""
        wide, made = x.double(), x_hat.double()
        self.sum_sq += wide.pow(2).sum()
        cosine = torch.cosine_similarity(wide, made, dim=1)
        self._add(wide, (wide - made).pow(2).sum(1), cosine, codes)

    def update_outer(self, fit: OuterFit, codes: SparseCodes) -> None:
        """Add a batch of an SAE that reconstructs u u^T."""
        u, inner, square = fit.u.double(), fit.inner.double(), fit.square.double()
        whole = u.pow(2).sum(1).pow(2)
        self.sum_sq += whole.sum()
        cosine = inner / (whole * square).sqrt().clamp_min(1e-30)
        # Rounding may leave a perfect reconstruction below zero.
        self._add(u, (whole - 2 * inner + square).clamp_min(0), cosine, codes)

    def _add(
        self,
        rows: Float64[Tensor, "batch d_in"],
        errors: Float64[Tensor, " batch"],
        cosine: Float64[Tensor, " batch"],
        codes: SparseCodes,
    ) -> None:
        self.n += len(rows)
        self.sum += rows.T @ rows if self.outer else rows.sum(dim=0)
        self.error += errors.sum()
        self.cosine += cosine.sum()
        self.fired += codes.firing_counts()
        self._errors.append(errors)
        if self._centre is None:
            self._first.append(rows)
            if self.n >= CENTRE_ROWS:
                self._fix_centre()
        else:
            self._spreads.append(self._spread(rows, self._centre))

    def _fix_centre(self) -> None:
        rows = torch.cat(self._first)
        first = rows[:CENTRE_ROWS]
        self._centre = first.T @ first / len(first) if self.outer else first.mean(0)
        self._spreads, self._first = [self._spread(rows, self._centre)], []

    def _spread(
        self, rows: Float64[Tensor, "batch d_in"], centre: Float64[Tensor, "*d_in"]
    ) -> Float64[Tensor, " batch"]:
        """The squared distance of each row, or of its outer product, from the centre."""
        if not self.outer:
            return (rows - centre).pow(2).sum(1)
        along = ((rows @ centre) * rows).sum(1)
        return rows.pow(2).sum(1).pow(2) - 2 * along + centre.pow(2).sum()

    def results(self) -> Figures:
        """The figures, by name.

        fvu, fvu_row_mean, fvu_row_median, top_share (of the largest thousandth of the rows),
        mse_sum (squared units of the activations), cosine, l0, dead, dense, d_sae, n_tokens; and
        outer, 1 if they are those of u u^T.
        """
        if self._centre is None:
            self._fix_centre()
        variance = self.sum_sq - self.sum.pow(2).sum() / self.n
        frequency = self.fired.double() / self.n
        spread = torch.cat(self._spreads)
        # A row at the mean has no variance to explain, and its quotient would be rounding.
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
            **({"outer": 1} if self.outer else {}),
        }


def fvu_warning(figures: Mapping[str, float]) -> str | None:
    """A sentence if a few rows decide the FVU; None if they do not.

    Also None for older figures without row-wise errors.
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


def _number(name: str) -> int:
    return int(name.removeprefix(OF_SITE))


def _lines(r: Figures) -> Iterator[Line]:
    """Older figures without row-wise errors have fewer lines."""
    what = "u u^T, u = x / ||x||," if r.get("outer") else "the activations"
    yield "FVU", f"{r['fvu']:.4f}", f"variance of {what} that it misses (0 is perfect)"
    for name in sorted((name for name in r if name.startswith(OF_SITE)), key=_number):
        yield f"FVU, site {_number(name)}", f"{r[name]:.4f}", "of the sites, in training's order"
    if "top_share" in r:
        rows = f"{r['fvu_row_mean']:.4f}, {r['fvu_row_median']:.4f}"
        yield "FVU, token by token", rows, "mean and median over tokens, each of which counts alike"
        seen = f"of {r['left_out'] + r['n_tokens']:.0f} tokens; as in training, they pass unchanged"
        yield "left out", f"{r['left_out']:.0f}", seen
    yield "L0", f"{r['l0']:.2f}", "latents active per token"
    yield "dead latents", f"{r['dead']} of {r['d_sae']}", f"silent on {r['n_tokens']} tokens"


def _sums(inputs: Inputs) -> Streamed:
    sae = inputs.sae
    outer = sae.config.decoder_problem is not None
    sums = Reconstruction(sae.d_out, sae.d_sae, inputs.device, outer=outer)
    widths = sae.widths if len(sae.widths) > 1 else ()
    each = [Reconstruction(width, sae.d_sae, inputs.device) for width in widths]

    def update(batch: Batch) -> None:
        if each and batch.x_hat is not None:
            parts = (rows.split(sae.widths, dim=1) for rows in (batch.rows.wanted, batch.x_hat))
            for own, x, x_hat in zip(each, *parts, strict=True):
                own.update(x, x_hat, batch.rows.codes)
        if batch.fit is not None:
            sums.update_outer(batch.fit, batch.rows.codes)
        elif batch.x_hat is not None:
            sums.update(batch.rows.wanted, batch.x_hat, batch.rows.codes)

    def results() -> Figures:
        sites = {f"{OF_SITE}{i}": own.results()["fvu"] for i, own in enumerate(each, 1)}
        return sums.results() | {"left_out": inputs.n_left_out} | sites

    return Streamed(update, results)


def _warnings(r: Figures) -> list[str]:
    return [warning] if (warning := fvu_warning(r)) else []


RECONSTRUCTION = Measurement(
    "reconstruction", "How faithful is it?", _lines, stream=_sums, suite="core", warnings=_warnings
)
