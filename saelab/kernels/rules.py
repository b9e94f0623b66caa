"""What a variant says of itself to the fused step: its mathematics as data, without Triton."""

from dataclasses import dataclass
from typing import Literal

Ties = Literal["index", "float32"]
"""What tells entries apart that rounding made equal: their index, or their products in float32."""


@dataclass(frozen=True)
class JumpRules:
    """What of JumpReLU stays the same over a run.

    Attributes:
        width: of the window around the threshold.
        target: L0 that the penalty drives at; None: the penalty is L0 itself.
    """

    width: float
    target: float | int | None


@dataclass(frozen=True)
class FusedRule:
    """The mathematics of an SAE's step by kernels alone; it stays the same over a run.

    Attributes:
        k: latents of a row, on average if `over_batch`; not read where there is `jump`.
        signed: whether the k of largest magnitude are kept, signs included, or the k largest
            rectified.
        over_batch: whether the largest of the whole batch are kept, or those of each row.
        groups: parts of a row's codes after each of which there is an error in the loss; more than
            one `over_batch` (prefixes of the latents) or with budgets only.
        share: of each group in the loss.
        budgets: numbers of ranked codes, whose errors are in the loss; the last is k, or, if
            `wider`, the first.
        wider: the weight of a second reconstruction by more codes than the SAE has (Multi-TopK).
        effect: beta, and whether the product alone counts, where the choice of codes looks at
            gradients of the model's loss (see `Effects`).
        aux: dead latents of a row that AuxK revives, and its weight in the loss; None: no AuxK.
        jump: how thresholds are learned, where each latent has its own.
        centres: whether the encoder reads x - b_dec, or x.
    """

    k: float | int = 0
    signed: bool = False
    over_batch: bool = False
    groups: int = 1
    share: float = 1.0
    budgets: tuple[int, ...] = ()
    wider: float = 0.0
    effect: tuple[float, bool] | None = None
    aux: tuple[int, float] | None = None
    jump: JumpRules | None = None
    centres: bool = True

    @property
    def shares(self) -> tuple[float, ...]:
        """What each group's error counts in the loss."""
        return (1.0, self.wider) if self.wider else (self.share,) * self.groups

    @property
    def by_row(self) -> bool:
        """Whether each row keeps k."""
        return not self.over_batch and self.jump is None

    @property
    def has_one_edge(self) -> bool:
        """Whether each row keeps k by value or size alone, with one error."""
        return self.by_row and not self.budgets and self.effect is None


@dataclass(frozen=True)
class StepValues:
    """What a fused step must know beside the batch, and may change from step to step.

    Attributes:
        prefixes: numbers of latents that each reconstruct by themselves, as many as the rule's
            groups, rising (Matryoshka).
        penalty_weight: of the penalty on L0 in the loss (JumpReLU).
    """

    prefixes: tuple[int, ...] = ()
    penalty_weight: float = 0.0
