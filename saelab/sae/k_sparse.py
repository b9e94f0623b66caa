"""k-sparse autoencoder: tied weights and the k largest linear units (arXiv 1312.5663)."""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from saelab.kernels import affine_codes
from saelab.kernels.rules import FusedRule, StepValues
from saelab.pursuit.select import largest
from saelab.sae.affine import AffineEncoder
from saelab.sae.base import AbstractSAE, AbstractSAEConfig
from saelab.sae.checks import check_k, check_rows
from saelab.sae.context import LossContext
from saelab.sae.dictionary import geometric_median, random_unit_rows
from saelab.sae.losses import squared_error
from saelab.sae.sparsity import Sparsity
from saelab.types import ActivationBatch, SparseCodes, TrainingPass


class KSparseConfig(AbstractSAEConfig):
    """k-sparse: tied weights and the k largest linear units of each row (arXiv 1312.5663)."""

    variant: Literal["k-sparse"] = "k-sparse"
    k: int = Field(default=32, gt=0)
    """Units kept at the end of training."""
    k_start: int | None = Field(default=None, gt=0)
    """Units kept at the start. The number falls linearly to k over the first half of training, so
    that no unit dies early (the paper's remedy); default: k throughout."""
    inference_multiplier: float = Field(default=1.0, ge=1, le=3)
    """At inference, k times this number of units are kept (the paper tries 1 to 3)."""

    @property
    @override
    def sparsity(self) -> Sparsity:
        return Sparsity("row", round(self.k * self.inference_multiplier), signed=True)

    @override
    def check(self) -> None:
        for k in (self.k, self.k_start or self.k, round(self.k * self.inference_multiplier)):
            check_k(k, self.d_sae)

    @property
    @override
    def transcoder_problem(self) -> str | None:
        return (
            "its decoder's rows encode too, and a transcoder reads other activations than it writes"
        )

    @override
    def build(self, d_in: int, generator: torch.Generator | None = None) -> "KSparse":
        self.check()
        return KSparse(self, d_in, generator)


class KSparse(AbstractSAE[KSparseConfig]):
    """a = x @ W + b_enc, z = the k largest (signed) of a, x_hat = z @ W^T + b_dec."""

    unit_atoms = False

    def __init__(
        self, config: KSparseConfig, d_in: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.W_dec = nn.Parameter(random_unit_rows(config.d_sae, d_in, generator))
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:  # noqa: N802 - the field's name
        """The decoder's transpose."""
        return self.W_dec.T

    @override
    def encode(self, x: Float[Tensor, "batch d_in"]) -> SparseCodes:
        check_rows(x, self.d_in)
        return self.codes_from(self.pre_activations(x))

    def codes_from(self, pre_acts: Float[Tensor, "batch d_sae"]) -> SparseCodes:
        """The codes that `encode` makes of rows with these pre-activations."""
        return largest(pre_acts, round(self.config.k * self.config.inference_multiplier))

    @override
    def training_pass(self, batch: ActivationBatch, context: LossContext) -> TrainingPass:
        with torch.no_grad():
            codes = largest(self.pre_activations(batch.x), self.k_at(context.progress))
        codes = affine_codes(codes, batch.x, self.W_enc, self.b_enc)
        x_hat = self.decode(codes)
        return TrainingPass(codes, x_hat, squared_error(batch.x, x_hat))

    def pre_activations(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """X @ W + b_enc, in float32."""
        return self.affine_encoder().pre_activations(x)

    def k_at(self, progress: float) -> int:
        """The k of a training step: linear over the first half of the run, then `k`."""
        start = self.config.k if self.config.k_start is None else self.config.k_start
        return round(start + min(1.0, 2 * progress) * (self.config.k - start))

    @override
    def fused_rule(self) -> FusedRule:
        k, start = self.config.k, self.config.k_start or self.config.k
        one = {"signed": True, "by_value": True, "centres": False, "tied": True}
        return FusedRule(max(k, start), falls=start != k, **one)

    @override
    def step_values(self, context: LossContext) -> StepValues:
        falls = self.config.k_start not in (None, self.config.k)
        return StepValues(k=self.k_at(context.progress) if falls else 0)

    @override
    def affine_encoder(self) -> AffineEncoder:
        return AffineEncoder(self.W_enc, self.b_enc, None)

    @override
    @torch.no_grad()
    def initialise(self, rows: Float[Tensor, "n d_in"]) -> None:
        # The encoder does not subtract b_dec; without the same shift in b_enc the units nearest to
        # the data's mean would win every row.
        center = geometric_median(rows)
        self.b_dec.copy_(center)
        self.b_enc.copy_(-center @ self.W_enc)

    @override
    @torch.no_grad()
    def rescale(self, scale: float, target_scale: float | None = None) -> None:
        self.b_enc.div_(scale)
        self.b_dec.div_(scale)
