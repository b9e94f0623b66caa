"""Crosscoder: one set of latents for several sites, which tells shared latents from specific ones.

It reads the rows of several sites side by side, of one model's layers or of one site of two models
on the same tokens, and each latent has a decoder row at every site (Lindsey et al. 2024,
transformer-circuits.pub/2024/crosscoders). A latent whose decoder row is zero at a site plays no
part there. Under an L1 penalty this is often false: the penalty shrinks the smaller of two decoder
rows to zero (complete shrinkage), and splits a shared latent in two (latent decoupling).
Selection by BatchTopK avoids both (arXiv 2504.02922).

The scale of a latent is free: f and w_i may be exchanged for f / c and c w_i. It is fixed here so
that sum_i ||w_i|| = 1 over the sites, after each step and without a change of the function. Both
rules of the papers then act on plain codes: BatchTopK selects by v = f sum_i ||w_i||, and L1
penalises it.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from saelab.config import UsageError
from saelab.pursuit.select import batch_top_k, nonzero, top_k
from saelab.sae.aux_k import AuxKConfig
from saelab.sae.base import AbstractSAE
from saelab.sae.batch_selection import AbstractBatchSelectionSAE
from saelab.sae.checks import check_k, check_rows, check_widths
from saelab.sae.context import LossContext
from saelab.sae.dictionary import site_norms
from saelab.sae.in_blocks import above_of_all
from saelab.sae.losses import squared_error
from saelab.sae.sparsity import Sparsity
from saelab.types import ActivationBatch, SparseCodes, TrainingPass


class CrosscoderConfig(AuxKConfig):
    """Crosscoder: latents shared by several sites or models (arXiv 2504.02922).

    --site A+B reads two sites of a store; --beside STORE reads --site of another model as well.
    `saelab diff` then lists shared and specific latents.

        saelab harvest --model tiny --text tiny --n-tokens 500000 --out activations_cache/two
            --sites blocks.1.hook_resid_post blocks.2.hook_resid_post
        saelab train crosscoder --activations activations_cache/two --d-sae 2048 --n-tokens 4000000
            --site blocks.1.hook_resid_post+blocks.2.hook_resid_post --out runs/crosscoder
    """

    variant: Literal["crosscoder"] = "crosscoder"
    selection: Literal["batch-topk", "l1"] = "batch-topk"
    """What keeps latents few: BatchTopK, or the L1 penalty of the first crosscoders, which makes
    spurious specific latents."""
    k: float | int = Field(default=32, gt=0)
    """Latents active per token on average, for batch-topk (paper: 100); l1 does not read it."""
    l1_coefficient: float = Field(default=0.1, ge=0)
    """Weight of sum_j f_j sum_i ||w_ij|| for l1, in the standard deviation of the rows."""
    l1_warmup: float = Field(default=0.05, ge=0, le=1)
    """Share of the run over which the penalty rises from zero."""
    widths: tuple[int, ...] = ()
    """Widths of the sites; training takes them from the store. Leave it out."""

    @property
    @override
    def joint_problem(self) -> None:
        return None

    @override
    def at_widths(self, widths: Sequence[int]) -> "CrosscoderConfig":
        check_widths(self.widths, tuple(widths))
        return self.model_copy(update={"widths": tuple(widths)})

    @property
    @override
    def transcoder_problem(self) -> str:
        return "it reconstructs all that it reads"

    @property
    @override
    def sparsity(self) -> Sparsity:
        chosen = self.selection == "batch-topk"
        return Sparsity("batch", self.k) if chosen else Sparsity("penalty", None)

    @override
    def check(self) -> None:
        if self.selection == "batch-topk":
            check_k(self.k, self.d_sae)

    @override
    def build(self, d_in: int, generator: torch.Generator | None = None) -> "Crosscoder":
        self.check()
        if self.widths and (sum(self.widths) != d_in or min(self.widths) < 1):
            raise UsageError(f"widths={self.widths} do not sum to the rows' {d_in} numbers.")
        return Crosscoder(self, d_in, generator)


class Crosscoder(AbstractBatchSelectionSAE[CrosscoderConfig]):
    """a = (x - b_dec) @ W_enc + b_enc over all sites; f = a where selected, or ReLU(a) under L1.

    W_dec has the decoder rows of all sites side by side.
    """

    unit_atoms = False

    def __init__(
        self, config: CrosscoderConfig, d_in: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(d_in, config.d_sae, config.k, generator)
        self.config = config
        with torch.no_grad():
            # A latent starts with one direction at all sites of one width, as if it were shared.
            rows = list(self.W_dec.split(self.widths, dim=1))
            alike = [rows[self.widths.index(width)] for width in self.widths]
            unit = torch.cat([F.normalize(part, dim=1) for part in alike], dim=1)
            self.W_enc.copy_(unit.T)
            self.W_dec.copy_(unit / len(self.widths))
        if config.selection == "l1":
            self.threshold.zero_()

    @property
    @override
    def widths(self) -> tuple[int, ...]:
        return self.config.widths or (self.d_in,)

    def site_norms(self) -> Float[Tensor, "d_sae site"]:
        """The norm of each latent's decoder row at each site; they sum to 1 over the sites."""
        return site_norms(self.W_dec, self.widths)

    @override
    def encode(self, x: Float[Tensor, "batch d_in"]) -> SparseCodes:
        if self.config.selection == "batch-topk":
            return super().encode(x)
        check_rows(x, self.d_in)
        return above_of_all(self.affine_encoder(), x, self.threshold)

    @override
    def training_pass(self, batch: ActivationBatch, context: LossContext) -> TrainingPass:
        if self.config.selection == "batch-topk":
            pre_acts, codes = self.choose(batch.x, lambda a: self.kept(batch_top_k, a, self.k))
            return self.selected_pass(batch, pre_acts, codes, context, top_k)
        z = self.pre_activations(batch.x).relu()
        x_hat = z @ self.W_dec + self.b_dec
        weight = self.config.l1_coefficient * context.risen(self.config.l1_warmup)
        # Read with its gradient, which is what shrinks the smaller rows.
        l1 = (z @ self.site_norms().sum(dim=1)).mean() / context.total_variance**0.5
        error = squared_error(batch.wanted, x_hat)
        return TrainingPass(nonzero(z), x_hat, error, {"l1": (weight, l1)})

    @override
    def follow(self, codes: SparseCodes) -> None:
        if self.config.selection == "batch-topk":
            super().follow(codes)

    @override
    def calibrate(self, rows: Float[Tensor, "n d_in"]) -> None:
        if self.config.selection == "batch-topk":
            super().calibrate(rows)

    @override
    def take_threshold(self, source: AbstractSAE, rows: Float[Tensor, "n d_in"]) -> None:
        if self.config.selection == "batch-topk":
            super().take_threshold(source, rows)

    @override
    def before_optimizer_step(self) -> None:
        return

    @override
    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        self.restore_norms()

    @override
    @torch.no_grad()
    def restore_norms(self) -> None:
        norms = self.site_norms().sum(dim=1).clamp_min(1e-12)
        self.W_dec.div_(norms[:, None])
        self.W_enc.mul_(norms)
        self.b_enc.mul_(norms)

    @override
    def fused_rule(self) -> str:
        return "its atoms have a norm at each site, and the kernels keep one at one"

    @override
    def foreign_rule(self) -> dict[str, Any] | None:
        return None
