"""What every variant has: a configuration that builds it, an encoder, a loss, usually a decoder."""

import abc
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import TypeVar

from saelab.config import MAX_D_SAE, UsageError
from saelab.kernels import sparse_decode
from saelab.kernels.rules import FusedRule, StepValues
from saelab.sae.abilities import AbstractAbilities
from saelab.sae.affine import AffineEncoder, LinearCodes
from saelab.sae.context import LossContext
from saelab.sae.dictionary import normalise_rows, remove_radial_gradient
from saelab.sae.interop.foreign import ForeignSAE
from saelab.sae.own_step import OwnStep
from saelab.sae.quadratic_form import QuadraticForm
from saelab.sae.sparsity import Sparsity
from saelab.sae.targets import AbstractTargets
from saelab.shard import LatentShard
from saelab.types import ActivationBatch, OuterFit, SparseCodes, TrainingPass


class AbstractSAEConfig(AbstractAbilities, abc.ABC):
    """The options of one variant; a subclass adds `variant: Literal["its-name"]` and its own."""

    variant: Any  # A Literal of each subclass, which no wider type may stand above.
    """The variant's name. Files and the command line refer to it by this name."""
    d_sae: int = Field(gt=0, le=MAX_D_SAE)
    """Number of latents (the width of the dictionary)."""

    @abc.abstractmethod
    def build(self, d_in: int, generator: torch.Generator | None = None) -> "AbstractSAE":
        """A freshly initialised SAE for inputs of width `d_in`.

        Building must also work on the meta device (no `.item()`, no `tolist()`): a saved file's
        shapes are compared with such an SAE before memory for its weights is allocated.

        Raises:
            UsageError: the options do not fit each other.
        """

    def check(self) -> None:
        """Refuse options that do not fit each other, without building anything.

        Raises:
            UsageError: the message names the options.
        """
        return

    def at_widths(self, widths: Sequence[int]) -> "AbstractSAEConfig":
        """The options of an SAE that reads several sites of these widths side by side.

        Raises:
            UsageError: it cannot, for the reason in `joint_problem`.
        """
        raise UsageError(
            f"A {self.variant} SAE cannot read {len(widths)} sites: {self.joint_problem}."
        )

    @property
    @abc.abstractmethod
    def sparsity(self) -> Sparsity:
        """What decides how many latents fire in a row."""

    @classmethod
    def of_foreign(cls, foreign: ForeignSAE) -> "AbstractSAEConfig | None":
        """The options that give this variant the codes of another tool's SAE; None if none do."""
        return None


ConfigT = TypeVar("ConfigT", bound=AbstractSAEConfig, covariant=True, default=AbstractSAEConfig)


class AbstractSAE(AbstractTargets, abc.ABC, Generic[ConfigT]):
    """Activations to sparse codes, and back by a linear decoder: x_hat = z @ W_dec + b_dec.

    A transcoder reads one site and reconstructs another. Its encoder subtracts b_in, a bias for the
    site it reads, instead of b_dec. It may have a linear skip connection: x_hat = z @ W_dec + (x -
    b_in) @ W_skip + b_dec (arXiv 2501.18823).
    """

    unit_atoms: ClassVar[bool]
    """Whether training keeps the rows of W_dec at unit norm."""
    config: ConfigT
    W_dec: nn.Parameter  # [d_sae d_out]
    b_dec: nn.Parameter  # [d_out]
    b_in: nn.Parameter | None  # [d_in], of transcoders
    W_skip: nn.Parameter | None  # [d_in d_out], of transcoders with a skip connection
    shard: LatentShard | None = None
    """The latents that are here, while several processes train the SAE; None: all of them. What
    such a module reconstructs is what all processes' latents reconstruct together."""
    own_bias: Tensor | None = None
    """A copy of `input_bias` in a training step of several processes, whose gradient is the part
    of it that comes from this process's latents; else None."""

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("b_in", None)
        self.register_parameter("W_skip", None)

    @property
    def is_transcoder(self) -> bool:
        """Whether the SAE reconstructs another site than it reads."""
        return self.b_in is not None

    @property
    def input_bias(self) -> Float[Tensor, " d_in"]:
        """The bias that a centring encoder subtracts: b_in of a transcoder, else b_dec."""
        return self.b_dec if self.b_in is None else self.b_in

    @property
    def encoder_bias(self) -> Float[Tensor, " d_in"]:
        """`input_bias`, as the encoder's training pass reads it: see `own_bias`."""
        return self.input_bias if self.own_bias is None else self.own_bias

    @property
    def d_in(self) -> int:
        """Width of the activations that the SAE reads."""
        return len(self.input_bias)

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the sites that the SAE reads side by side; mostly one."""
        return (self.d_in,)

    @property
    def d_out(self) -> int:
        """Width of the activations that the SAE reconstructs."""
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_dec.shape[0]

    @abc.abstractmethod
    def encode(self, x: Float[Tensor, "batch d_in"]) -> SparseCodes:
        """The codes of each row by the variant's inference rule, as rectangular `SparseCodes`."""

    @abc.abstractmethod
    def training_pass(self, batch: ActivationBatch, context: LossContext) -> TrainingPass:
        """Codes, reconstruction and loss terms of a batch, by the variant's training rule.

        The SAE is not changed. `observe` records what training must remember.
        """

    @property
    def encoder_products(self) -> int:
        """How many products of the rows with a `[d_in d_sae]` matrix its encoder takes at most."""
        return 1

    def own_step(self) -> OwnStep | None:
        """The training step of a variant that no gradient fits; None if a gradient does.

        It begins a training of this SAE, which must be on its device already.
        """
        return None

    def fused_rule(self) -> FusedRule | str:
        """The rule by which kernels alone train it, or why there is none, as half a sentence."""
        return f"{type(self).__name__} has no rule for one"

    def step_values(self, context: LossContext) -> StepValues:
        """The numbers that a fused step needs beside the batch."""
        return StepValues()

    def affine_encoder(self) -> AffineEncoder | None:
        """The affine map from x to the values of active latents; None if there is no such map."""
        return None

    def outer_fit(self, x: Float[Tensor, "batch d_in"], codes: SparseCodes) -> OuterFit | None:
        """How well `codes` of the rows `x` reconstruct u u^T; None if they reconstruct x."""
        return None

    def quadratic_form(self, latent: int) -> QuadraticForm | None:
        """The latent as a quadratic form of the unit row; None if it is no such form."""
        return None

    def cosines(self) -> Callable[[slice], Float[Tensor, "i d_sae"]]:
        """A function that gives the cosines of some latents' atoms with all latents' atoms."""
        unit = F.normalize(self.W_dec.float(), dim=1)
        return lambda rows: unit[rows] @ unit.T

    def linear_codes(self, x: Float[Tensor, "batch d_in"], codes: SparseCodes) -> LinearCodes:
        """The active latents of `codes` as affine functions of `x`, the rows that were encoded.

        Raises:
            UsageError: the codes are not affine in x, even when the active latents are fixed.
        """
        encoder = self.affine_encoder()
        if encoder is None:
            raise UsageError(
                f"The latents of a {type(self).__name__} are not known to be affine once the "
                "active ones are fixed, so their attributions would not add up; use another "
                "variant."
            )
        return encoder.at(x, codes)

    def foreign_rule(self) -> dict[str, Any] | None:
        """The fields of `ForeignSAE` that choose its latents; None if no tool has this rule."""
        return None

    def foreign_weights(self, foreign: ForeignSAE) -> dict[str, Tensor]:
        """The encoder's tensors by name, from a foreign SAE for which `of_foreign` gave options."""
        return {"W_enc": foreign.W_enc, "b_enc": foreign.b_enc}

    def decode(
        self, codes: SparseCodes, x: Float[Tensor, "batch d_in"] | None = None
    ) -> Float[Tensor, "batch d_out"]:
        """The reconstruction of each row.

        Raises:
            UsageError: the SAE has a skip connection or normalises rows, and `x`, the rows that
                were encoded, is missing.
        """
        return self.written(codes) + self.offset(x)

    def written(self, codes: SparseCodes) -> Float[Tensor, "batch d_out"]:
        """The latents' part of the reconstruction, z @ W_dec."""
        part = sparse_decode(codes, self.W_dec, self.b_dec.dtype)
        return part if self.shard is None else self.shard.sum_all(part)

    def offset(
        self, x: Float[Tensor, "batch d_in"] | None
    ) -> Float[Tensor, " d_out"] | Float[Tensor, "batch d_out"]:
        """What is added to the latents' part: `resting`, and the skip connection at `x`."""
        if self.W_skip is None:
            return self.resting(x)
        if x is None:
            raise UsageError(
                "This transcoder has a skip connection; decode(codes, x) needs the rows it read."
            )
        return (x - self.input_bias) @ self.W_skip + self.b_dec

    def encode_for(
        self, x: Float[Tensor, "batch d_in"], target: Float[Tensor, "batch d_out"] | None = None
    ) -> SparseCodes:
        """The codes of each row, for somebody who also has what a transcoder should reconstruct.

        Only encoders that search for codes read `target`, see `saelab.sae.with_encoder`.
        """
        return self.encode(x)

    def reconstruct(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_out"]:
        """`decode(encode(x), x)`."""
        return self.decode(self.encode(x), x)

    @abc.abstractmethod
    def initialise(self, rows: Float[Tensor, "n d_in"]) -> None:
        """Set what depends on the data, before the first step, from sampled rows.

        For a transcoder the rows are of the site it reads, and `start_transcoder` runs first.
        """

    def take_threshold(self, source: "AbstractSAE", rows: Float[Tensor, "n d_in"]) -> None:
        """Take over a trained SAE's thresholds, if this variant has any; see `start_from`."""
        return

    def observe(self, codes: SparseCodes) -> None:
        """Record the codes of a training step; called once, before the optimizer's step."""
        return

    def before_optimizer_step(self) -> None:
        """Adjust gradients; called once per step, between backward and the optimizer's step.

        Of unit atoms' gradients it keeps what is tangent to the unit sphere.
        """
        if self.unit_atoms:
            remove_radial_gradient(self.W_dec)

    def after_optimizer_step(self) -> None:
        """Restore constraints, such as unit atoms; called once after the optimizer's step."""
        if self.unit_atoms:
            normalise_rows(self.W_dec)

    def restore_norms(self) -> None:
        """Scale atoms to unit norm where training does, and scale codes up by the norms removed.

        Used for weights that no training step made, such as an average over steps.
        """
        return

    def calibrate(self, rows: Float[Tensor, "n d_in"]) -> None:
        """Set what inference needs and training cannot give, from held-out rows."""
        return

    @abc.abstractmethod
    def rescale(self, scale: float, target_scale: float | None = None) -> None:
        """Turn an SAE of `scale * x` into the same SAE of x: f(x) becomes f(scale * x) / scale.

        A transcoder's target has its own scale: f(x) becomes f(scale * x) / target_scale.
        """
