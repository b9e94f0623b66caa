"""Standard SAE: ReLU latents kept few by an L1 penalty (arXiv 2309.08600).

The loss is that of Anthropic's update of April 2024: the penalty weighs each latent by its atom's
norm, so atoms have free norms, and a change of scale between atoms and encoder does not lower it.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from saelab.pursuit.select import above, nonzero
from saelab.sae.affine import AffineEncoder
from saelab.sae.base import AbstractSAE, AbstractSAEConfig
from saelab.sae.checks import check_rows
from saelab.sae.context import LossContext
from saelab.sae.dictionary import geometric_median, moderate_scale, random_unit_rows
from saelab.sae.in_blocks import above_alone, above_of_all
from saelab.sae.interop.foreign import ForeignSAE
from saelab.sae.losses import squared_error, weighted_l1
from saelab.sae.sparsity import Sparsity
from saelab.sae.transcoder import shrink_codes
from saelab.types import ActivationBatch, SparseCodes, TrainingPass


class StandardConfig(AbstractSAEConfig):
    """Standard: ReLU and an L1 penalty weighted by decoder norms (arXiv 2309.08600).

    Atoms have free norms. Dead latents are not resampled.
    """

    variant: Literal["standard"] = "standard"
    l1_coefficient: float = Field(default=0.1, ge=0)
    """Weight of sum_j z_j ||w_j||. The sum is measured in the standard deviation of the activations
    over all dimensions together."""
    l1_warmup: float = Field(default=0.05, ge=0, le=1)
    """Share of the run over which the penalty rises from zero (the update of 2024: 5 %)."""
    subtract_b_dec: bool = False
    """Whether the encoder reads x - b_dec (the update of 2024: no). A transcoder's always reads
    x - b_in."""

    @property
    @override
    def sparsity(self) -> Sparsity:
        return Sparsity("penalty", None)

    @classmethod
    @override
    def of_foreign(cls, foreign: ForeignSAE) -> "StandardConfig | None":
        plain = foreign.threshold is not None and not foreign.threshold.any()
        if not plain or foreign.signed or foreign.batch_k is not None:
            return None
        return cls(d_sae=foreign.d_sae, subtract_b_dec=foreign.subtract_b_dec)

    @override
    def build(self, d_in: int, generator: torch.Generator | None = None) -> "Standard":
        return Standard(self, d_in, generator)


class Standard(AbstractSAE[StandardConfig]):
    """z = ReLU(x @ W_enc + b_enc)."""

    unit_atoms = False

    def __init__(
        self, config: StandardConfig, d_in: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.config = config
        atoms = random_unit_rows(config.d_sae, d_in, generator)
        atoms *= moderate_scale(config.d_sae, d_in) ** 0.5
        self.W_dec = nn.Parameter(atoms)
        self.W_enc = nn.Parameter(atoms.T.contiguous().clone())
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    @override
    def affine_encoder(self) -> AffineEncoder:
        centred = self.config.subtract_b_dec or self.is_transcoder
        return AffineEncoder(self.W_enc, self.b_enc, self.input_bias if centred else None)

    def pre_activations(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """Pre-activations, in float32; ReLU applies to them."""
        return self.affine_encoder().pre_activations(x)

    @override
    def encode(self, x: Float[Tensor, "batch d_in"]) -> SparseCodes:
        check_rows(x, self.d_in)
        return above_of_all(self.affine_encoder(), x, x.new_zeros((), dtype=torch.float32))

    def codes_from(self, pre_acts: Float[Tensor, "batch d_sae"]) -> SparseCodes:
        """The codes that `encode` makes of rows with these pre-activations."""
        return above(pre_acts, pre_acts.new_zeros(()))

    def encode_some(
        self, x: Float[Tensor, "batch d_in"], latents: Int[Tensor, " some"]
    ) -> SparseCodes:
        """See `saelab.sae.in_blocks.codes_of`."""
        check_rows(x, self.d_in)
        return above_alone(self.affine_encoder(), x, latents, x.new_zeros((), dtype=torch.float32))

    @override
    def training_pass(self, batch: ActivationBatch, context: LossContext) -> TrainingPass:
        z = self.pre_activations(batch.x).relu()
        # Dense, since about half of all latents fire at the start.
        x_hat = z @ self.W_dec + self.offset(batch.x)
        weight = self.config.l1_coefficient * context.risen(self.config.l1_warmup)
        parts = {"l1": (weight, weighted_l1(z, self.W_dec, context))}
        return TrainingPass(nonzero(z), x_hat, squared_error(batch.wanted, x_hat), parts)

    @override
    def fused_rule(self) -> str:
        return "its atoms have free norms, and the kernels keep them at one"

    @override
    def foreign_rule(self) -> dict[str, Any]:
        return {"threshold": torch.zeros(self.d_sae)}

    @override
    @torch.no_grad()
    def initialise(self, rows: Float[Tensor, "n d_in"]) -> None:
        center = geometric_median(rows)
        self.input_bias.copy_(center)
        if self.affine_encoder().centre is None:
            self.b_enc.copy_(-center @ self.W_enc)

    @override
    def rescale(self, scale: float, target_scale: float | None = None) -> None:
        shrink_codes(self, (self.b_enc, self.b_dec), scale, target_scale)
