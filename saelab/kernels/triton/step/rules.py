"""What decides a fused training step: its mathematics, and the shapes of its launches."""

from dataclasses import dataclass

from saelab.kernels.rules import FusedRule, Ties
from saelab.kernels.sizes import power_of_two
from saelab.kernels.torch.pairs import SLICE
from saelab.kernels.triton.step.aux_k import AuxRules


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
        sae: what the variant says of itself.
        total_variance: what the squared error is divided by.
        adam: how gradients move the weights.
        clip_norm: the largest norm of all gradients together; None: no limit, and no norm.
        aux: how dead latents are revived, if they are.
        ties: what tells entries apart that are equal as stored; "float32" only where the SAE's
            rule has one edge.
    """

    sae: FusedRule
    total_variance: float
    adam: AdamRules = AdamRules()
    clip_norm: float | None = None
    aux: AuxRules | None = None
    ties: Ties = "index"


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
