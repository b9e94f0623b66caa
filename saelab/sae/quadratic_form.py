"""One quadratic form by its eigenvalues and eigenvectors: the geometry of a bilinear latent."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class QuadraticForm:
    """A symmetric form x -> x^T F x, by its eigenvalues and eigenvectors.

    Attributes:
        values: `[n]`, the eigenvalues of F, by falling magnitude.
        vectors: `[n d]`, unit eigenvectors as rows; a zero row belongs to an eigenvalue of zero.
    """

    values: Float[Tensor, " n"]
    vectors: Float[Tensor, "n d"]

    def project(self, u: Float[Tensor, "batch d"], n: int = 2) -> Float[Tensor, "batch n"]:
        """The coordinates of rows along the first `n` eigenvectors."""
        return u @ self.vectors[:n].T

    def at(self, u: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """u^T F u of each row."""
        return (u @ self.vectors.T).pow(2) @ self.values

    def share(self, n: int = 2) -> float:
        """The share of ||F||_F^2 that the first `n` eigenvalues hold."""
        square = self.values.double().pow(2)
        return float(square[:n].sum() / square.sum().clamp_min(1e-300))


def spectrum(left: Float[Tensor, " d"], right: Float[Tensor, " d"]) -> QuadraticForm:
    """The form (l . x)(r . x): its matrix (l r^T + r l^T) / 2 has at most two eigenvalues.

    They are (l . r + |l||r|) / 2 >= 0 with the eigenvector l/|l| + r/|r|, and (l . r - |l||r|) / 2
    <= 0 with l/|l| - r/|r|. If l and r are parallel, one eigenvalue is zero.
    """
    size, product = left.norm() * right.norm(), left @ right
    units = F.normalize(left, dim=0), F.normalize(right, dim=0)
    vectors = torch.stack([units[0] + units[1], units[0] - units[1]])
    length = vectors.norm(dim=1, keepdim=True)
    vectors = torch.where(length > 1e-6, vectors / length.clamp_min(1e-12), 0.0)
    values = torch.stack([product + size, product - size]) / 2
    order = values.abs().argsort(descending=True)
    return QuadraticForm(values[order], vectors[order])


def composite(
    weights: Float[Tensor, " m"], left: Float[Tensor, "m d"], right: Float[Tensor, "m d"]
) -> QuadraticForm:
    """The form sum_j weights_j (l_j . x)(r_j . x); costs d^3 for its eigenvalues."""
    matrix = (weights.double()[:, None] * left.double()).T @ right.double()
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    order = values.abs().argsort(descending=True)
    return QuadraticForm(values[order].float(), vectors.T[order].float())
