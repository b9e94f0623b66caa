"""Gated SAE: one rule decides which latents fire, another how strongly (arXiv 2404.16014).

The L1 penalty falls on the gate alone, so it does not shrink the magnitudes. The gate is a step
function without a gradient. It learns from a second reconstruction, made from the gate's own
pre-activations with a frozen decoder.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from saelab.pursuit.select import above, nonzero
from saelab.sae.affine import AffineEncoder
from saelab.sae.base import AbstractSAE, AbstractSAEConfig
from saelab.sae.checks import check_rows
from saelab.sae.context import LossContext
from saelab.sae.dictionary import geometric_median, moderate_scale, move_norms, random_unit_rows
from saelab.sae.interop.foreign import ForeignSAE, Gate
from saelab.sae.losses import squared_error, weighted_l1
from saelab.sae.sparsity import Sparsity
from saelab.sae.transcoder import shrink_codes
from saelab.types import ActivationBatch, SparseCodes, TrainingPass


class GatedConfig(AbstractSAEConfig):
    """Gated: a gate decides which latents fire, and L1 falls on it alone (arXiv 2404.16014).

    Atoms have unit norm. Dead latents are not resampled.
    """

    variant: Literal["gated"] = "gated"
    l1_coefficient: float = Field(default=0.1, ge=0)
    """Weight of the sum of the gate's positive pre-activations. The sum is measured in the standard
    deviation of the activations over all dimensions together."""
    l1_warmup: float = Field(default=0.05, ge=0, le=1)
    """Share of the run over which the penalty rises from zero."""

    @property
    @override
    def sparsity(self) -> Sparsity:
        return Sparsity("penalty", None)

    @classmethod
    @override
    def of_foreign(cls, foreign: ForeignSAE) -> "GatedConfig | None":
        return None if foreign.gate is None else cls(d_sae=foreign.d_sae)

    @override
    def build(self, d_in: int, generator: torch.Generator | None = None) -> "Gated":
        return Gated(self, d_in, generator)


class Gated(AbstractSAE[GatedConfig]):
    """u = (x - b_dec) @ W_enc, z = ReLU(exp(r_mag) u + b_mag) where u + b_gate > 0."""

    unit_atoms = True

    def __init__(
        self, config: GatedConfig, d_in: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.config = config
        atoms = random_unit_rows(config.d_sae, d_in, generator)
        self.W_dec = nn.Parameter(atoms)
        self.W_enc = nn.Parameter(atoms.T * moderate_scale(config.d_sae, d_in))
        self.b_gate = nn.Parameter(torch.zeros(config.d_sae))
        self.r_mag = nn.Parameter(torch.zeros(config.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(config.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    @override
    def affine_encoder(self) -> AffineEncoder:
        return AffineEncoder(self.W_enc * self.r_mag.exp(), self.b_mag, self.input_bias)

    def pre_activations(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """Pre-activations of the magnitudes, in float32; `threshold` applies to them."""
        return self._gate_and_magnitude(x)[1]

    @property
    def threshold(self) -> Float[Tensor, " d_sae"]:
        """The magnitude >= 0 above which the gate is open, as a JumpReLU threshold."""
        return (self.b_mag - self.r_mag.exp() * self.b_gate).clamp_min(0)

    @override
    def encode(self, x: Float[Tensor, "batch d_in"]) -> SparseCodes:
        check_rows(x, self.d_in)
        gate, magnitude = self._gate_and_magnitude(x)
        return above(torch.where(gate > 0, magnitude, 0.0), magnitude.new_zeros(()))

    @override
    def training_pass(self, batch: ActivationBatch, context: LossContext) -> TrainingPass:
        gate, magnitude = self._gate_and_magnitude(batch.x)
        z = torch.where(gate > 0, magnitude.relu(), 0.0)
        # Dense, since about half of all latents fire at the start.
        x_hat = z @ self.W_dec + self.offset(batch.x)
        frozen, opened = self.W_dec.detach(), gate.relu()
        by_gate = opened @ frozen + self.offset(batch.x).detach()
        weight = self.config.l1_coefficient * context.risen(self.config.l1_warmup)
        parts = {
            "l1": (weight, weighted_l1(opened, frozen, context)),
            "gate": (1.0, squared_error(batch.wanted, by_gate) / context.total_variance),
        }
        return TrainingPass(nonzero(z), x_hat, squared_error(batch.wanted, x_hat), parts)

    def _gate_and_magnitude(
        self, x: Float[Tensor, "batch d_in"]
    ) -> tuple[Float[Tensor, "batch d_sae"], Float[Tensor, "batch d_sae"]]:
        """Pre-activations of gate and magnitude, in float32."""
        u = ((x - self.input_bias) @ self.W_enc).float()
        return u + self.b_gate, u * self.r_mag.exp() + self.b_mag

    @override
    def fused_rule(self) -> str:
        return "it has two encoders and two reconstructions, and the kernels know one"

    @override
    def foreign_rule(self) -> dict[str, Any]:
        gate = Gate(self.r_mag.detach().cpu().float(), self.b_gate.detach().cpu().float())
        return {"gate": gate, "W_enc": self.W_enc}

    @override
    def foreign_weights(self, foreign: ForeignSAE) -> dict[str, Tensor]:
        assert foreign.gate is not None
        gate = {"r_mag": foreign.gate.r_mag, "b_gate": foreign.gate.b_gate}
        return {"W_enc": foreign.W_enc, "b_mag": foreign.b_enc, **gate}

    @override
    @torch.no_grad()
    def restore_norms(self) -> None:
        move_norms(self.W_dec, self.W_enc, self.b_gate, self.b_mag)

    @override
    @torch.no_grad()
    def initialise(self, rows: Float[Tensor, "n d_in"]) -> None:
        self.input_bias.copy_(geometric_median(rows))

    @override
    def rescale(self, scale: float, target_scale: float | None = None) -> None:
        shrink_codes(self, (self.b_gate, self.b_mag, self.b_dec), scale, target_scale)
