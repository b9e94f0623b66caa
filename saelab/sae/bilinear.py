"""Bilinear autoencoder: quadratic latents that reconstruct u u^T (arXiv 2510.16820, 2605.08891).

A latent is f_j(x) = (l_j . u)(r_j . u) with u = x / ||x||, so a latent may respond to a curved set
of directions, such as a circle. The same factors decode: X_hat = sum_j f_j l_j r_j^T reconstructs
the matrix X = u u^T, whose norm is 1. The squared error is 1 - 2 sum_j f_j^2 + f^T K f with the
kernel K of `saelab.sae.quadratic`, so no d x d matrix is formed. Sign and length of x are lost: f(c
x) = f(x) for every c != 0.

Four kinds are from the authors' code: plain; `ordered`, whose loss is the mean over all prefixes of
the latents; mixed (`bottleneck`), where g = D^T D f decodes instead of f, so the atom of a latent
is the composite form sum_i (D^T D)_ij l_i r_i^T; and both. The loss adds the mean Hoyer density of
the latents over the batch.

What differs from the authors' code: factors start as random unit rows (there: orthogonal), and Adam
trains them (there: Muon). With `ordered` the density is the mean over prefixes, too, as the comment
in their code says (the code takes the plain mean). The symmetric kernel, TopK (an experiment there,
with an untied decoder) and the threshold (their figures call a latent active above 0.01) are
options. Not here: biases, which their later code adds by a constant dimension of x; and what
2605.08891 says beyond its abstract, since its text and code were not at hand.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from saelab.config import UsageError
from saelab.pursuit.select import above, abs_top_k, nonzero
from saelab.sae.base import AbstractSAE, AbstractSAEConfig
from saelab.sae.checks import check_k, check_rows
from saelab.sae.context import LossContext
from saelab.sae.decoder import check_decoder
from saelab.sae.dictionary import random_unit_rows
from saelab.sae.quadratic import (
    Forms,
    fit_of_few,
    mean_hoyer_density,
    mean_square_norm,
    single,
    square_norms,
    square_norms_of_few,
)
from saelab.sae.quadratic_form import QuadraticForm, composite, spectrum
from saelab.sae.sparsity import Sparsity
from saelab.types import ActivationBatch, OuterError, OuterFit, SparseCodes, TrainingPass

HOYER = 0.1


class BilinearConfig(AbstractSAEConfig):
    """Bilinear: quadratic latents reconstruct the outer product of each row (arXiv 2510.16820).

    FVU and errors are those of u u^T with unit rows u, so they do not compare with other variants'.
    The authors train latents of 16 times the width.
    """

    variant: Literal["bilinear"] = "bilinear"
    k: int | None = Field(default=None, gt=0)
    """Latents of largest magnitude that a token keeps; default: all above the threshold, as in the
    paper."""
    hoyer_coefficient: float | None = Field(default=None, ge=0)
    """Weight of the mean Hoyer density of the latents over a batch (0: each fires in one row; 1: in
    all rows alike); default: 0.1 (the authors'), or 0 with --k."""
    hoyer_warmup: float = Field(default=0.25, ge=0, le=1)
    """Share of the run over which this weight rises from zero (authors: 256 of 1024 steps)."""
    threshold: float = Field(default=0.01, ge=0)
    """Without --k, a latent is active if its magnitude is above this; training always uses all
    (authors: 0.01 in figures)."""
    symmetric: bool = True
    """Decode by the symmetric parts (l r^T + r l^T) / 2, whose error is never larger, instead of by
    l r^T as in the paper."""
    ordered: bool = False
    """Average the loss over all prefixes of the latents, so that the first matter most."""
    bottleneck: int | None = Field(default=None, gt=0)
    """Mixed latents: decode D^T D f with a matrix D of this many rows (authors: twice the width of
    the activations), so that a latent's atom is a sum of forms; default: not mixed."""

    @property
    @override
    def sparsity(self) -> Sparsity:
        per = "penalty" if self.k is None else "row"
        return Sparsity(per, self.k, signed=True, by_magnitude=True)

    @property
    @override
    def decoder_problem(self) -> str:
        return (
            "it reconstructs the outer product of an activation with itself, from which the sign "
            "and the length cannot be recovered"
        )

    @property
    @override
    def transcoder_problem(self) -> str:
        return "its encoder's factors decode too, into outer products of what it reads"

    @property
    def density_weight(self) -> float:
        """The weight of the Hoyer density when fully risen."""
        if self.hoyer_coefficient is None:
            return HOYER if self.k is None else 0.0
        return self.hoyer_coefficient

    @override
    def check(self) -> None:
        if self.k is not None:
            check_k(self.k, self.d_sae)
        if self.bottleneck is not None and self.bottleneck > self.d_sae:
            raise UsageError(
                f"bottleneck={self.bottleneck} exceeds d_sae={self.d_sae}, so it is none; lower it."
            )

    @override
    def build(self, d_in: int, generator: torch.Generator | None = None) -> "Bilinear":
        self.check()
        return Bilinear(self, d_in, generator)


class Bilinear(AbstractSAE[BilinearConfig]):
    """f = (u @ W_left^T) * (u @ W_right^T), and X_hat = sum_j g_j l_j r_j^T with g = f or D^T D f.

    `variance` is V = E||X - E X||^2 = 1 - ||E X||^2 over the rows that `initialise` saw; logged
    FVUs are errors over V.
    """

    unit_atoms = False
    variance: Float[Tensor, ""]
    W_mix: nn.Parameter | None  # [bottleneck d_sae]

    def __init__(
        self, config: BilinearConfig, d_in: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.W_left = nn.Parameter(random_unit_rows(config.d_sae, d_in, generator))
        self.W_right = nn.Parameter(random_unit_rows(config.d_sae, d_in, generator))
        self.register_parameter("W_mix", None)
        if config.bottleneck is not None:
            # Unit columns: D^T D f then begins as f, mixed with a little of the others.
            self.W_mix = nn.Parameter(
                random_unit_rows(config.d_sae, config.bottleneck, generator).T.contiguous()
            )
        self.register_buffer("variance", torch.ones(()))

    @property
    @override
    def encoder_products(self) -> int:
        return 2

    @property
    @override
    def d_in(self) -> int:
        return self.W_left.shape[1]

    @property
    @override
    def d_out(self) -> int:
        return self.d_in

    @property
    @override
    def d_sae(self) -> int:
        return len(self.W_left)

    @property
    @override
    def W_dec(self) -> Tensor:  # pyrefly: ignore[bad-override]
        """Refused, so that no use of decoder rows goes wrong silently."""
        check_decoder(self.config)
        raise AssertionError

    @property
    @override
    def b_dec(self) -> Tensor:  # pyrefly: ignore[bad-override]
        """Refused, as `W_dec` is."""
        return self.W_dec

    @property
    def forms(self) -> Forms:
        """The latents' forms, as the reconstruction counts them."""
        return Forms(self.W_left, self.W_right, symmetric=self.config.symmetric)

    @staticmethod
    def unit(x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        """U = x / ||x||; a zero row stays zero."""
        return F.normalize(x, dim=1, eps=torch.finfo(x.dtype).tiny)

    def features(self, u: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """Every latent of unit rows, in float32 at least."""
        return single((u @ self.W_left.T) * (u @ self.W_right.T))

    def mixed(self, f: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_sae"]:
        """What decodes: f, or D^T D f."""
        return f if self.W_mix is None else (f @ self.W_mix.T) @ self.W_mix

    @override
    def encode(self, x: Float[Tensor, "batch d_in"]) -> SparseCodes:
        check_rows(x, self.d_in)
        f = self.features(self.unit(x))
        if self.config.k is not None:
            return abs_top_k(f, self.config.k)
        return above(f, f.new_tensor(self.config.threshold), signed=True)

    @override
    def training_pass(self, batch: ActivationBatch, context: LossContext) -> TrainingPass:
        config, u = self.config, self.unit(batch.x)
        f = self.features(u)
        codes, error = self._reconstructed(u, f, ordered=config.ordered)
        main = error
        if config.ordered:
            with torch.no_grad():
                _, main = self._reconstructed(u, f, ordered=False)
        parts = {}
        if weight := config.density_weight:
            kept = f if config.k is None else codes.dense()
            density = mean_hoyer_density(kept, ordered=config.ordered)
            parts["hoyer"] = (weight * context.risen(config.hoyer_warmup), density)
        return TrainingPass(codes, None, error, parts, OuterError(main.detach(), self.variance))

    def _reconstructed(
        self,
        u: Float[Tensor, "batch d_in"],
        f: Float[Tensor, "batch d_sae"],
        *,
        ordered: bool,
    ) -> tuple[SparseCodes, Float[Tensor, ""]]:
        """The codes, and ||X - X_hat||^2, mean over the batch; `ordered`: over all prefixes too."""
        forms, k = replace(self.forms, ordered=ordered), self.config.k
        whole, share = u.pow(2).sum(1).pow(2), forms.share(0, self.d_sae)
        # Without k, training uses every latent; those below the threshold do not count as active.
        if k is None:
            kept = f
            codes = nonzero(torch.where(f.abs() > self.config.threshold, f, 0.0).detach())
        else:
            codes = abs_top_k(f, k)
            if self._few(codes):
                values, square = fit_of_few(u, codes.indices, forms)
                inner = (share[codes.indices] * values.pow(2)).sum(1)
                return replace(codes, values=values), (whole - 2 * inner + square).mean()
            kept = codes.dense()
        g = self.mixed(kept)
        inner = (share * f * g).sum(1)
        return codes, (whole - 2 * inner).mean() + mean_square_norm(g, forms)

    def _few(self, codes: SparseCodes) -> bool:
        """Whether the kernel of each row's active latents is cheaper than that of all latents."""
        if self.W_mix is not None:
            return False
        width = codes.values.shape[1]
        return 4 * width**2 * self.d_in < self.d_sae**2

    @override
    def outer_fit(self, x: Float[Tensor, "batch d_in"], codes: SparseCodes) -> OuterFit:
        u, codes = self.unit(x), codes.rectangular()
        f, g = self.features(u), self.mixed(codes.dense())
        if self._few(codes):
            square = square_norms_of_few(codes.values, codes.indices, self.forms)
        else:
            square = square_norms(g, self.forms)
        return OuterFit(u, (f * g).sum(1), square)

    @override
    def quadratic_form(self, latent: int) -> QuadraticForm:
        """The symmetric part of the latent's atom; with a bottleneck, of its composite form."""
        if self.W_mix is None:
            return spectrum(self.W_left[latent], self.W_right[latent])
        return composite(self.W_mix.T @ self.W_mix[:, latent], self.W_left, self.W_right)

    @override
    def cosines(self) -> Callable[[slice], Float[Tensor, "i d_sae"]]:
        """Cosines of the forms f_j; with a bottleneck, of the columns of D, which mix them."""
        if self.W_mix is not None:
            unit = F.normalize(self.W_mix.T.float(), dim=1)
            return lambda rows: unit[rows] @ unit.T
        forms = self.forms
        norms = forms.norms().clamp_min(1e-12)
        return lambda rows: forms.kernel(rows) / norms[rows, None] / norms

    @override
    def fused_rule(self) -> str:
        return "its kernels are those of quadratic forms, of which no CUDA graph is made"

    @override
    @torch.no_grad()
    def initialise(self, rows: Float[Tensor, "n d_in"]) -> None:
        u = self.unit(rows)
        second = u.T @ u / len(u)
        self.variance.copy_((u.pow(2).sum(1).pow(2).mean() - second.pow(2).sum()).clamp_min(1e-12))

    @override
    def rescale(self, scale: float, target_scale: float | None = None) -> None:
        # The latents do not depend on the scale of x.
        return
