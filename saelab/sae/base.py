"""What every variant is: a configuration that builds it, an encoder, a loss, mostly a decoder."""

import abc
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from saelab.config import Config, UsageError
from saelab.kernels import sparse_decode
from saelab.types import ActivationBatch, LossTerms, SparseCodes


class AbstractSAEConfig(Config, abc.ABC):
    """The options of one variant. A subclass adds `variant: Literal["its-name"]` and its own."""

    d_sae: int = Field(gt=0)
    """Number of latents (the width of the dictionary)."""

    @abc.abstractmethod
    def build(self, d_in: int, generator: torch.Generator | None = None) -> "AbstractSAE":
        """A freshly initialised SAE for inputs of width `d_in`.

        Raises:
            UsageError: the options do not fit each other or `d_in`.
        """


@dataclass(frozen=True)
class LossContext:
    """What a loss must know beside the batch.

    Attributes:
        total_variance: V = E||x - E x||^2 over the store; losses are divided by it, so that
            learning rates and coefficients carry over between layers and models.
        dead: which latents have not fired for long; None while none has.
    """

    total_variance: float
    dead: Bool[Tensor, " d_sae"] | None = None


class AbstractFeaturizer(nn.Module, abc.ABC):
    """Anything that turns activations into sparse codes and can be trained to."""

    @abc.abstractmethod
    def encode(self, x: Float[Tensor, "batch d_in"]) -> SparseCodes:
        """The codes of each row, by the variant's inference rule."""

    @abc.abstractmethod
    def loss(self, batch: ActivationBatch, context: LossContext) -> LossTerms:
        """The training loss on a batch, by the variant's training rule."""

    def before_optimizer_step(self) -> None:
        """Adjust gradients; called once between backward and the optimizer's step."""
        return

    def after_optimizer_step(self) -> None:
        """Restore constraints on the weights; called once after the optimizer's step."""
        return


class AbstractSAE(AbstractFeaturizer):
    """A featurizer with a linear decoder: x_hat = z @ W_dec + b_dec."""

    config: AbstractSAEConfig
    W_dec: nn.Parameter  # [d_sae d_in]
    b_dec: nn.Parameter  # [d_in]

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_dec.shape[0]

    def decode(self, codes: SparseCodes) -> Float[Tensor, "batch d_in"]:
        """The reconstruction of each row."""
        return sparse_decode(codes, self.W_dec) + self.b_dec

    def reconstruct(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        """`decode(encode(x))`."""
        return self.decode(self.encode(x))

    @abc.abstractmethod
    def initialise_bias(self, center: Float[Tensor, " d_in"]) -> None:
        """Set what depends on where the data lie; `center` is their geometric median."""


def check_rows(x: Tensor, d_in: int) -> None:
    """Refuse an encoder's input that is not a non-empty, finite `[batch d_in]`.

    Raises:
        UsageError: the shape is wrong, or a value is not finite.
    """
    if x.ndim != 2 or x.shape[1] != d_in or len(x) == 0:
        raise UsageError(
            f"The SAE reads rows of shape [batch, {d_in}], at least one; got {list(x.shape)}."
        )
    if not bool(x.isfinite().all()):
        raise UsageError("The activations hold NaN or infinite values.")


def check_k(k: int, d_sae: int) -> None:
    """Refuse a k that no row can have.

    Raises:
        UsageError: k exceeds d_sae.
    """
    if k > d_sae:
        raise UsageError(f"k={k} exceeds d_sae={d_sae}; lower --k or widen the SAE with --d-sae.")
