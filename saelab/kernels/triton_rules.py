"""What decides a fused training step: its mathematics, and the shapes of its launches."""

from dataclasses import dataclass

from saelab.kernels.pairs import SLICE
from saelab.kernels.sizes import power_of_two
from saelab.kernels.triton_aux import AuxRules
from saelab.kernels.triton_jump import JumpRules


@dataclass(frozen=True)
class AdamRules:
    """Adam with decoupled weight decay (AdamW, arXiv 1711.05101).

    Attributes:
        betas: how long gradients and their squares are remembered.
        eps: added to the root of the second moment.
        weight_decay: times the learning rate, the share that both matrices lose in a step; biases
            and thresholds lose nothing.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 6.25e-10
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Rules:
    """What stays the same over a run.

    Attributes:
        k: latents of a row, on average if `over_batch`.
        signed: whether the k of largest magnitude are kept, signs included, or the k largest
            rectified.
        total_variance: what the squared error is divided by.
        adam: how gradients move the weights.
        clip_norm: the largest norm of all gradients together; None: no limit, and no norm.
        aux: how dead latents are revived, if they are.
        over_batch: whether the largest of the whole batch are kept, or those of each row.
        groups: parts of a row's codes after each of which there is an error in the loss; more than
            one `over_batch` (prefixes of the latents) or with budgets only.
        share: of each group in the loss.
        budgets: numbers of ranked codes, whose errors are in the loss; the last is k, or, if
            `wider`, the first.
        wider: the weight of a second reconstruction by more codes than the SAE has (Multi-TopK).
        effect: beta, and whether the product alone counts, where the choice of codes looks at
            gradients of the model's loss (see `Effects`).
        unrounded: whether entries that are equal as stored are told apart by their products before
            rounding; where rows choose k by value or size alone.
        jump: how thresholds are learned, where each latent has its own; k is not read then.
        centres: whether the encoder reads x - b_dec, or x.
    """

    k: float | int
    signed: bool
    total_variance: float
    adam: AdamRules = AdamRules()
    clip_norm: float | None = None
    aux: AuxRules | None = None
    over_batch: bool = False
    groups: int = 1
    share: float = 1.0
    budgets: tuple[int, ...] = ()
    wider: float = 0.0
    effect: tuple[float, bool] | None = None
    unrounded: bool = False
    jump: JumpRules | None = None
    centres: bool = True

    @property
    def shares(self) -> tuple[float, ...]:
        """What each group's error counts in the loss."""
        return (1.0, self.wider) if self.wider else (self.share,) * self.groups


@dataclass(frozen=True)
class Launch:
    """Shapes of the latent-major pass, which change its speed and the order of sums.

    The defaults were the fastest of those tried on an H100.

    Attributes:
        columns: of a chunk.
        pairs: whose rows are loaded at a time.
        latents: that a program does one after the other.
        slice: the most pairs of a latent that are not split.
    """

    columns: int = 256
    pairs: int = 2
    latents: int = 8
    slice: int = SLICE

    def fit(self, d: int) -> "Launch":
        """The same for rows of width d, which may be narrower than a chunk."""
        columns = min(self.columns, max(16, power_of_two(d)))
        return Launch(columns, self.pairs, self.latents, self.slice)
