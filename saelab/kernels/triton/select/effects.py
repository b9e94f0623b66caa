"""The effects of latents on the model's loss, by which a gradient SAE selects."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.kernels.rules import EffectRules
from saelab.kernels.triton.weights import Weights


@dataclass(frozen=True)
class Effects:
    """The score z * (base + beta * |product|) of each entry; see `GradientTopK.select`.

    Attributes:
        grad: `[batch d_in]`, gradients dL/dx at a step's rows; write them before the step.
        products: products of the atoms with the gradients, scaled to norm sqrt(d_in) if the rules
            say so.
        base: per row: 1, or 0 if the product alone counts and there is a gradient.
        rules: how effects enter the score.
        atoms: the atoms, of unit norm.
    """

    grad: Float[Tensor, "batch d_in"]
    products: Float[Tensor, "batch d_sae"]
    base: Float[Tensor, " batch"]
    rules: EffectRules
    atoms: Float[Tensor, "d_sae d_in"]

    @classmethod
    def empty(cls, x: Float[Tensor, "batch d_in"], d_sae: int, rules: EffectRules) -> "Effects":
        """Memory for the rows x."""
        base = torch.ones(len(x), dtype=torch.float32, device=x.device)
        grad = base.new_zeros(x.shape)
        products = x.new_empty(len(x), d_sae)
        return cls(grad, products, base, rules, x.new_empty(d_sae, x.shape[1]))

    def measure(self, weights: Weights) -> None:
        """The products of the current gradients with the current atoms."""
        grad, size = self.grad, self.grad.norm(dim=1, keepdim=True)
        if self.rules.alone:
            # Without a gradient (a context's last token) every product is zero.
            self.base.copy_(size[:, 0] == 0)
        if self.rules.normalised:
            size = size.clamp_min(torch.finfo(torch.float32).tiny)
            grad = grad / size * grad.shape[1] ** 0.5
        torch.mul(weights.dec.value, weights.scale[:, None], out=self.atoms)
        torch.mm(grad.to(self.products.dtype), self.atoms.T, out=self.products)
