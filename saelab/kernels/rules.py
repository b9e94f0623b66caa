"""What a variant tells the fused step: its mathematics as data, without Triton."""

from dataclasses import dataclass
from typing import Literal

Ties = Literal["index", "float32"]
"""What tells entries apart that rounding made equal: their index, or their products in float32."""


@dataclass(frozen=True)
class JumpRules:
    """What stays the same about JumpReLU during a run.

    Attributes:
        width: width of the window around the threshold.
        target: the penalty's target L0; None if the penalty is L0 itself.
    """

    width: float
    target: float | int | None


@dataclass(frozen=True)
class UsageRules:
    """How often latents should fire: k a row in total, shared by rank (see `zipf`).

    Attributes:
        k: active latents per row on average.
        exponent: s in Zipf-Mandelbrot's law, (rank + shift)^-s.
        shift: the law's shift.
        share: a latent is under-used below this share of its rank's density.
        window: tokens over which densities are averaged.
    """

    k: float | int
    exponent: float
    shift: float
    share: float
    window: int


@dataclass(frozen=True)
class EffectRules:
    """How gradients of the model's loss help to choose codes; see `GradientTopK.select`.

    Attributes:
        beta: weight of the effect.
        alone: whether the product of value and effect counts alone.
        normalised: whether each row's gradient is first scaled to norm sqrt(d_in).
    """

    beta: float
    alone: bool
    normalised: bool


@dataclass(frozen=True)
class FusedRule:
    """The mathematics of an SAE's step by kernels alone; it stays the same during a run.

    Attributes:
        k: latents per row, on average if `over_batch`; ignored with `jump`.
        signed: whether the k of largest magnitude are kept with their signs, or the k largest,
            rectified.
        by_value: whether the k largest are kept with their signs, `signed` given.
        falls: whether k falls to `StepValues.k` during training; needs rows of k.
        tied: whether one matrix of atoms of any norm encodes and decodes.
        pursues: whether one matrix of unit atoms does, and each of a row's k latents is chosen from
            what those before left (matching pursuit).
        over_batch: whether the largest of the whole batch are kept, or the largest of each row.
        groups: number of parts of a row's codes; the loss has an error after each part. More than
            one only with `over_batch` (prefixes of the latents) or with budgets.
        share: weight of each group's error in the loss.
        budgets: numbers of ranked codes whose errors are in the loss; the last is k, with `wider`
            the first.
        wider: the weight of a second reconstruction by more codes than the SAE has (Multi-TopK).
        effect: if gradients of the model's loss help to choose the codes, how.
        aux: number of dead latents per row in AuxK, and its weight in the loss; None for no AuxK.
        jump: how thresholds are learned, if each latent has its own.
        centres: whether the encoder reads x - b_dec instead of x.
        usage: how often latents should fire, if training counts it; AuxK then revives under-used
            latents as well as dead ones.
        by_column: whether at some step each latent begins to keep as many rows as its rank's budget
            allows (Feature Choice), rather than the batch its largest entries; each latent then has
            a threshold. Needs `usage` and `over_batch`.
    """

    k: float | int = 0
    signed: bool = False
    by_value: bool = False
    falls: bool = False
    tied: bool = False
    pursues: bool = False
    over_batch: bool = False
    groups: int = 1
    share: float = 1.0
    budgets: tuple[int, ...] = ()
    wider: float = 0.0
    effect: EffectRules | None = None
    aux: tuple[int, float] | None = None
    jump: JumpRules | None = None
    centres: bool = True
    usage: UsageRules | None = None
    by_column: bool = False

    @property
    def shares(self) -> tuple[float, ...]:
        """The weight of each group's error in the loss."""
        return (1.0, self.wider) if self.wider else (self.share,) * self.groups

    @property
    def by_row(self) -> bool:
        """Whether each row keeps k latents."""
        return not self.over_batch and self.jump is None

    @property
    def by_magnitude(self) -> bool:
        """Whether the largest by magnitude are kept, not by value."""
        return self.signed and not self.by_value

    @property
    def by_size(self) -> bool:
        """Whether value or magnitude alone decides what is kept, of each row or of the batch."""
        otherwise = self.jump is not None or self.effect is not None
        return not (otherwise or self.pursues or self.by_column)

    @property
    def has_one_edge(self) -> bool:
        """Whether each row keeps k by value or magnitude alone, with one error."""
        plain = not (self.by_value or self.pursues or self.budgets)
        return self.by_row and plain and self.effect is None

    @property
    def has_one_matrix(self) -> bool:
        """Whether the encoder is the decoder's transpose."""
        return self.tied or self.pursues


@dataclass(frozen=True)
class StepValues:
    """What a fused step needs beside the batch; it may change from step to step.

    Attributes:
        prefixes: ascending prefix lengths that each reconstruct alone, one per group of the rule
            (Matryoshka).
        penalty_weight: weight of the penalty on L0 in the loss (JumpReLU).
        by_column: whether a rule of that name is in force already (Feature Choice).
        k: latents per row, if the rule says that they fall (k-sparse).
    """

    prefixes: tuple[int, ...] = ()
    penalty_weight: float = 0.0
    by_column: bool = False
    k: int = 0
