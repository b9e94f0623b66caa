"""Attribution over all paths, and with weak latents cut on the way (arXiv 2405.13868).

Plain attribution of a latent is its value times the target's total gradient. Hierarchical
attribution walks from the target down and lets no gradient pass through a latent whose attribution
so far is below a threshold, so what is left is a circuit whose every path is strong. Kept sets at
two thresholds need not be nested: cutting a negative path can raise a latent above it.
"""

from dataclasses import dataclass
from math import inf

from jaxtyping import Bool, Float
from torch import Tensor

from saelab.analysis.circuits.backward_walk import Gate, walk_back
from saelab.analysis.circuits.frozen import Frozen
from saelab.analysis.circuits.targets import Target


@dataclass(frozen=True)
class PathAttribution:
    """What every latent and leaf gives a target over the paths that were let through.

    Attributes:
        threshold: in the target's units.
        signed: whether attributions, or their magnitudes, were compared with it.
        latents: value times gradient; a latent that was cut has what it would have given.
        kept: which latents the gradient passed.
        leaves: contributions of the leaves, in the order of `Frozen.leaves`.
        value: the target's.
    """

    threshold: float
    signed: bool
    latents: Float[Tensor, " latent"]
    kept: Bool[Tensor, " latent"]
    leaves: Float[Tensor, " leaf"]
    value: float

    @property
    def recovered(self) -> float:
        """The leaves' sum over the target's value: 1 where nothing was cut."""
        return float(self.leaves.sum()) / self.value


def hierarchical_attribution(
    frozen: Frozen, target: Target, threshold: float | int = -inf, *, signed: bool = True
) -> PathAttribution:
    """Attributions with every latent at or below the threshold cut; all paths at -inf.

    Args:
        frozen: the prompt.
        target: what is explained.
        threshold: in the target's units; prompts compare at a share of |target.value|.
        signed: True cuts latents that work against the target, as the paper's code does; False
            compares magnitudes, and keeps inhibitors.
    """
    found = walk_back(frozen, target.reading, _gate(threshold, signed=signed))
    latents = (found.gradient * frozen.values)[0]
    kept = _passes(latents, threshold, signed=signed) & (found.gradient[0] != 0)
    return PathAttribution(float(threshold), signed, latents, kept, found.leaves[0], target.value)


def _gate(threshold: float | int, *, signed: bool) -> Gate:
    def gate(
        gradient: Float[Tensor, "target n"], values: Float[Tensor, " n"]
    ) -> Float[Tensor, "target n"]:
        return gradient * _passes(gradient * values, threshold, signed=signed)

    return gate


def _passes(
    attribution: Float[Tensor, "*n"], threshold: float | int, *, signed: bool
) -> Bool[Tensor, "*n"]:
    return (attribution if signed else attribution.abs()) > threshold
