"""Gradient SAE: the choice of latents also counts their effect on the loss (arXiv 2411.10397)."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from saelab.config import UsageError
from saelab.kernels.rules import EffectRules, FusedRule
from saelab.pursuit.select import top_k
from saelab.sae.aux_k import AuxKConfig
from saelab.sae.checks import check_k, check_rows
from saelab.sae.context import LossContext
from saelab.sae.in_blocks import largest_of_all
from saelab.sae.sparsity import Sparsity
from saelab.sae.unit_norm import AbstractUnitNormSAE
from saelab.types import ActivationBatch, SparseCodes, TrainingPass


class GradientTopKConfig(AuxKConfig):
    """Gradient SAE: TopK by value and by effect on the loss (arXiv 2411.10397).

    Training reads the gradients that `saelab harvest --gradients` stores. Inference has no
    gradients (the loss needs the next token), so `encode` is plain TopK.

        saelab harvest --model tiny --sites blocks.2.hook_resid_post --text tiny --gradients
            --n-tokens 500000 --out activations_cache/gradients
        saelab train gradient-topk --activations activations_cache/gradients
            --site blocks.2.hook_resid_post --d-sae 1024 --n-tokens 4000000 --out runs/gradient-topk
    """

    variant: Literal["gradient-topk"] = "gradient-topk"
    k: int = Field(default=32, gt=0)
    """Latents active per token."""
    reading: Literal["augmented", "product"] = "augmented"
    """The score that latents are selected by: z * (1 + beta * effect) (`augmented`), or z * effect
    (`product`, which ignores beta). The paper's text allows both."""
    beta: float = Field(default=1.0, ge=0)
    """Weight of the effect |<dL/dx, atom>|; 0 is TopK."""
    normalise_gradient: bool = True
    """Whether each token's effects are divided by their root mean square, so that beta means the
    same for every model, layer and token. Otherwise beta multiplies raw gradients of the summed
    loss (as the paper's formula reads), which are larger where the loss is; the product chooses the
    same latents either way."""

    @property
    @override
    def sparsity(self) -> Sparsity:
        return Sparsity("row", self.k)

    @override
    def check(self) -> None:
        check_k(self.k, self.d_sae)

    @override
    def build(self, d_in: int, generator: torch.Generator | None = None) -> "GradientTopK":
        self.check()
        return GradientTopK(self, d_in, generator)

    @property
    @override
    def needs_gradient(self) -> bool:
        return True

    @property
    @override
    def end_to_end_problem(self) -> str | None:
        return "a gradient SAE reads stored gradients, and the live model gives none"


class GradientTopK(AbstractUnitNormSAE[GradientTopKConfig]):
    """Values are those of TopK; only the choice of latents uses the gradient."""

    def __init__(
        self, config: GradientTopKConfig, d_in: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(d_in, config.d_sae, generator)
        self.config = config

    @override
    def encode(self, x: Float[Tensor, "batch d_in"]) -> SparseCodes:
        check_rows(x, self.d_in)
        return largest_of_all(self.affine_encoder(), x, self.config.k)

    def codes_from(self, pre_acts: Float[Tensor, "batch d_sae"]) -> SparseCodes:
        """The codes that `encode` makes of rows with these pre-activations."""
        return top_k(pre_acts, self.config.k)

    @override
    def training_pass(self, batch: ActivationBatch, context: LossContext) -> TrainingPass:
        grad = batch.grad
        if grad is None:
            raise UsageError("A gradient SAE trains on gradients: harvest with --gradients.")
        pre_acts, codes = self.choose(batch.x, lambda a: self.select(a, grad))
        return self.selected_pass(batch, pre_acts, codes, context, top_k)

    def select(
        self, pre_acts: Float[Tensor, "batch d_sae"], grad: Float[Tensor, "batch d_out"]
    ) -> SparseCodes:
        """The k latents of the largest scores, with their values z = ReLU(a)."""
        z = pre_acts.relu()
        with torch.no_grad():
            effect = effects(grad, self.W_dec, relative=self.config.normalise_gradient)
            augmented = self.config.reading == "augmented"
            score = z * (1 + self.config.beta * effect if augmented else effect)
            # Where there is no gradient (a context's last token) every product is zero.
            score = torch.where(grad.any(dim=1, keepdim=True), score, z)
            indices = score.topk(self.config.k, dim=1).indices
        return SparseCodes(z.gather(1, indices), indices, self.d_sae)

    @override
    def fused_rule(self) -> FusedRule:
        alone, normalised = self.config.reading == "product", self.config.normalise_gradient
        effect = EffectRules(1.0 if alone else self.config.beta, alone, normalised)
        return self.selected_rule(self.config.k, effect=effect)

    @override
    def foreign_rule(self) -> dict[str, Any]:
        return {"k": self.config.k}


def effects(
    grad: Float[Tensor, "batch d_out"], W_dec: Float[Tensor, "d_sae d_out"], *, relative: bool
) -> Float[Tensor, "batch d_sae"]:
    """|<dL/dx, w_j>|, the first-order effect of latent j per unit of x.

    x is what is reconstructed: for a transcoder its target, and the gradient is the target's too.
    `relative` divides by the root mean square over unit atoms in random directions, ||dL/dx|| /
    sqrt(d_out). Training scales rows by a constant, but not gradients, and a constant factor of all
    z changes no ranking: beta refers to dL/dx of the model's own activations.
    """
    if relative:
        size = grad.norm(dim=1, keepdim=True).clamp_min(torch.finfo(grad.dtype).tiny)
        grad = grad / size * grad.shape[1] ** 0.5
    return (grad @ W_dec.T).abs().float()
