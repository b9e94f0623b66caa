"""How well and how sparsely an SAE reconstructs: FVU, L0, dead latents."""

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.types import Figures, SparseCodes


class Reconstruction:
    """Sums over any number of batches, in float64; the figures do not depend on the batching.

    FVU = sum ||x - x_hat||^2 / sum ||x - E x||^2, one ratio of sums with the mean of all rows
    (arXiv 2408.05147, section 4): 0 is perfect, 1 no better than the mean.
    """

    def __init__(self, d_in: int, d_sae: int, device: torch.device) -> None:
        self.n = 0
        self.sum = torch.zeros(d_in, dtype=torch.float64, device=device)
        self.sum_sq, self.error, self.cosine = (
            torch.zeros((), dtype=torch.float64, device=device) for _ in range(3)
        )
        self.fired = torch.zeros(d_sae, dtype=torch.int64, device=device)

    def update(
        self, x: Float[Tensor, "batch d_in"], x_hat: Float[Tensor, "batch d_in"], codes: SparseCodes
    ) -> None:
        """Add a batch."""
        self.n += len(x)
        wide = x.double()
        self.sum += wide.sum(dim=0)
        self.sum_sq += wide.pow(2).sum()
        self.error += (wide - x_hat.double()).pow(2).sum()
        self.cosine += torch.cosine_similarity(wide, x_hat.double(), dim=1).sum()
        self.fired += codes.firing_counts()

    def results(self) -> Figures:
        """fvu, mse_sum (squared units of the activations), cosine, l0, dead, dense, n_tokens."""
        variance = self.sum_sq - self.sum.pow(2).sum() / self.n
        frequency = self.fired.double() / self.n
        return {
            "fvu": float(self.error / variance),
            "mse_sum": float(self.error) / self.n,
            "cosine": float(self.cosine) / self.n,
            "l0": float(self.fired.sum()) / self.n,
            "dead": int((self.fired == 0).sum()),
            "dense": int((frequency > 0.1).sum()),
            "d_sae": len(self.fired),
            "n_tokens": self.n,
        }
