"""The effects of latents on the model's loss, by which a gradient SAE selects."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.kernels.triton.weights import Weights


@dataclass(frozen=True)
class Effects:
    """The score z * (base + beta * |product|) of each entry; see `GradientTopK.select`.

    Attributes:
        grad: `[batch d_in]`, gradients dL/dx at a step's rows; write them before the step.
        products: products of the atoms with the gradients, which are scaled to norm sqrt(d_in).
        base: per row: 1, or 0 if the product alone counts.
        beta: weight of the effect.
        product_alone: whether base is 0 in rows with a gradient.
        atoms: the atoms, of unit norm.
    """

    grad: Float[Tensor, "batch d_in"]
    products: Float[Tensor, "batch d_sae"]
    base: Float[Tensor, " batch"]
    beta: float
    product_alone: bool
    atoms: Float[Tensor, "d_sae d_in"]

    @classmethod
    def empty(
        cls, x: Float[Tensor, "batch d_in"], d_sae: int, *, beta: float, product_alone: bool
    ) -> "Effects":
        """Memory for the rows x."""
        base = torch.ones(len(x), dtype=torch.float32, device=x.device)
        grad = base.new_zeros(x.shape)
        products = x.new_empty(len(x), d_sae)
        return cls(grad, products, base, beta, product_alone, x.new_empty(d_sae, x.shape[1]))

    def measure(self, weights: Weights) -> None:
        """The products of the current gradients with the current atoms."""
        size = self.grad.norm(dim=1, keepdim=True)
        if self.product_alone:
            # Without a gradient (a context's last token) every product is zero.
            self.base.copy_(size[:, 0] == 0)
        size = size.clamp_min(torch.finfo(torch.float32).tiny)
        direction = self.grad / size * self.grad.shape[1] ** 0.5
        torch.mul(weights.dec.value, weights.scale[:, None], out=self.atoms)
        torch.mm(direction.to(self.products.dtype), self.atoms.T, out=self.products)
