"""JumpReLU SAE: a learned threshold for every latent (arXiv 2407.14435; also 2408.05147)."""

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from saelab.kernels.rules import FusedRule, JumpRules, StepValues
from saelab.pursuit.select import above, among, nonzero, top_k
from saelab.sae.affine import AffineEncoder
from saelab.sae.aux_k import AuxKConfig, add_aux_k
from saelab.sae.base import AbstractSAE
from saelab.sae.checks import check_k, check_rows
from saelab.sae.context import LossContext
from saelab.sae.dictionary import geometric_median, move_norms, random_unit_rows
from saelab.sae.in_blocks import above_alone, above_of_all
from saelab.sae.interop.foreign import ForeignSAE
from saelab.sae.jump import INITIAL_THRESHOLD, START_ROWS, WITHOUT_TARGET, Heaviside, Jump, start_of
from saelab.sae.losses import squared_error
from saelab.sae.sparsity import Sparsity
from saelab.sae.transcoder import shrink_codes
from saelab.types import ActivationBatch, SparseCodes, TrainingPass


class JumpReLUConfig(AuxKConfig):
    """JumpReLU: z = a where a exceeds the latent's own threshold (arXiv 2407.14435).

    The penalty is on L0 itself; straight-through estimates give its gradient. Sizes (threshold,
    bandwidth) are in units of the activations' standard deviation: train with --normalise, the
    default. AuxK revives silent latents, as in the TopK family, since JumpReLU's own gradient does
    not reach them.
    """

    variant: Literal["jumprelu"] = "jumprelu"
    k: float | int | None = Field(default=32, gt=0)
    """Target mean L0: the penalty is l0_coefficient * (L0 / k - 1)^2. Without a target it is the
    paper's own, l0_coefficient * L0."""
    l0_coefficient: float = Field(default=10.0, ge=0)
    """Weight of the penalty: about 10 with a target, about 1e-3 without. With a target the final
    mean L0 exceeds it by about a tenth at weight 1 and by about a hundredth at weight 10."""
    l0_warmup: float = Field(default=0.1, ge=0, le=1)
    """Share of the run over which the penalty rises from zero (Gemma Scope: linear warm-up)."""
    bandwidth: float | None = Field(default=None, gt=0)
    """Width of the window around the threshold in which its gradient is estimated. Default: with a
    target, so wide that before training four times the target's latents exceed the window's lower
    edge; else 0.5."""
    subtract_b_dec: bool = False
    """Whether the encoder reads x - b_dec (Gemma Scope: no; some other tools' files: yes). A
    transcoder's always reads x - b_in."""

    @property
    @override
    def spread_problem(self) -> str | None:
        return None

    @property
    @override
    def sparsity(self) -> Sparsity:
        return Sparsity("penalty", self.k)

    @classmethod
    @override
    def of_foreign(cls, foreign: ForeignSAE) -> "JumpReLUConfig | None":
        if foreign.threshold is None or foreign.signed:
            return None
        subtract = foreign.subtract_b_dec
        return cls(d_sae=foreign.d_sae, k=foreign.batch_k, subtract_b_dec=subtract)

    @override
    def check(self) -> None:
        if self.k is not None:
            check_k(self.k, self.d_sae)

    @override
    def build(self, d_in: int, generator: torch.Generator | None = None) -> "JumpReLU":
        self.check()
        return JumpReLU(self, d_in, generator)


class JumpReLU(AbstractSAE[JumpReLUConfig]):
    """a = x @ W_enc + b_enc; z_j = a_j where a_j > threshold_j. Thresholds of 0 make a ReLU SAE."""

    unit_atoms = True

    def __init__(
        self, config: JumpReLUConfig, d_in: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.config = config
        atoms = random_unit_rows(config.d_sae, d_in, generator)
        self.W_dec = nn.Parameter(atoms)
        self.W_enc = nn.Parameter(atoms.T.contiguous().clone())
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        # The threshold itself, in float32. Its logarithm would hardly move under Adam, and in
        # bfloat16 its steps would be rounded away.
        self.threshold = nn.Parameter(torch.full((config.d_sae,), INITIAL_THRESHOLD))
        self.bandwidth = config.bandwidth or WITHOUT_TARGET

    @property
    def centres(self) -> bool:
        """Whether the encoder subtracts the input bias."""
        return self.config.subtract_b_dec or self.is_transcoder

    def pre_activations(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """Pre-activations, in float32; the thresholds apply to them."""
        return self.affine_encoder().pre_activations(x)

    @override
    def encode(self, x: Float[Tensor, "batch d_in"]) -> SparseCodes:
        check_rows(x, self.d_in)
        return above_of_all(self.affine_encoder(), x, self.threshold)

    def codes_from(self, pre_acts: Float[Tensor, "batch d_sae"]) -> SparseCodes:
        """The codes that `encode` makes of rows with these pre-activations."""
        return above(pre_acts, self.threshold)

    def encode_some(
        self, x: Float[Tensor, "batch d_in"], latents: Int[Tensor, " some"]
    ) -> SparseCodes:
        """See `saelab.sae.in_blocks.codes_of`."""
        check_rows(x, self.d_in)
        return above_alone(self.affine_encoder(), x, latents, self.threshold)

    @override
    def training_pass(self, batch: ActivationBatch, context: LossContext) -> TrainingPass:
        pre_acts, width = self.pre_activations(batch.x), self.bandwidth
        z: Tensor = Jump.apply(pre_acts, self.threshold, width)
        # Dense, since about half of all latents fire at the start.
        part: Tensor = z @ self.W_dec
        on: Tensor = Heaviside.apply(pre_acts, self.threshold, width)
        l0 = on.sum(dim=1).mean()
        if self.shard is not None:
            part, l0 = self.shard.sum_all(part), self.shard.sum_all(l0)
            l0 = self.shard.replicas.mean_all(l0)
        x_hat = part + self.offset(batch.x)
        penalty = l0 if self.config.k is None else (l0 / self.config.k - 1).square()
        parts = {"l0_penalty": (self.penalty_weight(context), penalty)}
        done = TrainingPass(nonzero(z), x_hat, squared_error(batch.wanted, x_hat), parts)

        def dead_codes(dead: Bool[Tensor, " d_sae"], n: int) -> SparseCodes:
            return among(top_k, pre_acts, dead, n, self.shard)

        add_aux_k(done, self, batch.wanted, context, dead_codes)
        return done

    def penalty_weight(self, context: LossContext) -> float:
        """The penalty's weight in the loss at this step."""
        return self.config.l0_coefficient * context.risen(self.config.l0_warmup)

    @override
    def fused_rule(self) -> FusedRule:
        jump, aux = JumpRules(self.bandwidth, self.config.k), self.config.aux_rule(self.d_out)
        return FusedRule(jump=jump, aux=aux, centres=self.centres)

    @override
    def step_values(self, context: LossContext) -> StepValues:
        return StepValues(penalty_weight=self.penalty_weight(context))

    @override
    def affine_encoder(self) -> AffineEncoder:
        return AffineEncoder(self.W_enc, self.b_enc, self.encoder_bias if self.centres else None)

    @override
    def foreign_rule(self) -> dict[str, Any]:
        return {"threshold": self.threshold}

    @override
    def foreign_weights(self, foreign: ForeignSAE) -> dict[str, Tensor]:
        assert foreign.threshold is not None
        return super().foreign_weights(foreign) | {"threshold": foreign.threshold}

    @override
    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        super().after_optimizer_step()
        self.threshold.clamp_min_(0)

    @override
    @torch.no_grad()
    def restore_norms(self) -> None:
        move_norms(self.W_dec, self.W_enc, self.b_enc, self.threshold)

    @override
    @torch.no_grad()
    def initialise(self, rows: Float[Tensor, "n d_in"]) -> None:
        center = geometric_median(rows)
        self.input_bias.copy_(center)
        if not self.centres:
            self.b_enc.copy_(-center @ self.W_enc)
        if self.config.k is not None:
            start, width = start_of(self.pre_activations, rows, self.config.k)
            self.threshold.fill_(start)
            self.bandwidth = self.config.bandwidth or width

    @override
    def take_threshold(self, source: AbstractSAE, rows: Float[Tensor, "n d_in"]) -> None:
        known = source.state_dict().get("threshold")
        if known is not None and not bool(known.isnan().any()):
            self.threshold.copy_(known)
        else:
            some = rows[:: -(-len(rows) // START_ROWS)]
            own = float(source.encode(some).active.sum()) / len(some)
            start, _ = start_of(self.pre_activations, rows, self.config.k or own)
            self.threshold.fill_(start)

    @override
    def rescale(self, scale: float, target_scale: float | None = None) -> None:
        shrink_codes(self, (self.b_enc, self.b_dec, self.threshold), scale, target_scale)
