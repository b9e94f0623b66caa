"""The definition of a fused training step: its mathematics, and the shapes of its launches."""

from dataclasses import dataclass, replace

import torch

from saelab.kernels.rules import FusedRule, Ties
from saelab.kernels.sizes import ceil_div, power_of_two
from saelab.kernels.torch.pairs import SLICE, LatentPairs, Slices
from saelab.kernels.triton.pairs import heavy_slices
from saelab.kernels.triton.step.aux_k import AuxRules


@dataclass(frozen=True)
class AdamRules:
    """Adam with decoupled weight decay (AdamW, arXiv 1711.05101).

    Attributes:
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        weight_decay: this times the learning rate is the share that both matrices lose per step;
            biases and thresholds lose nothing.
        moments: dtype of the latents' rows' moments; in bfloat16 they are rounded at random.
        seed: of the rounding.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 6.25e-10
    weight_decay: float = 0.0
    moments: torch.dtype = torch.float32
    seed: int = 0

    @property
    def constants(self) -> dict[str, float]:
        """What kernels are compiled with."""
        return {"B1": self.betas[0], "B2": self.betas[1], "EPS": self.eps}


@dataclass(frozen=True)
class Rules:
    """What stays the same during a run.

    Attributes:
        sae: the variant's rule.
        total_variance: divisor of the squared error.
        adam: options of Adam.
        clip_norm: largest global gradient norm; None for no limit, and then the norm is not
            computed.
        aux: AuxK's rules, if there is AuxK.
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
    """Shapes of the latent-major pass. They affect its speed and the order of sums.

    The defaults were the fastest of those tried on an H100.

    Attributes:
        columns: columns per chunk.
        pairs: pairs whose rows are loaded at a time.
        latents: latents that a program does one after the other.
        slice: largest number of pairs of a latent that is not split.
        again: with clipping, the sums of a latent with more pairs are kept for the second visit;
            those of fewer pairs are as soon made again.
        programs: about so many programs are launched at least; few ones leave a GPU waiting.
    """

    columns: int = 256
    pairs: int = 2
    latents: int = 8
    slice: int = SLICE
    again: int = 16
    programs: int = 8192

    def slices(self, pairs: LatentPairs, *, twice: bool) -> Slices:
        """The sums that are made before the visits to the latents, which are one or two."""
        return heavy_slices(pairs, self.slice, min(self.slice, self.again) if twice else self.slice)

    def fit(self, d: int, m: int) -> "Launch":
        """The same for m latents' rows of width d, which may be narrower than a chunk."""
        columns = min(self.columns, max(16, power_of_two(d)))
        each = m * ceil_div(d, columns) // self.programs
        return replace(self, columns=columns, latents=max(1, min(self.latents, each)))
