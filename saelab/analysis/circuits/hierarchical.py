"""Attribution over all paths, and with weak latents cut on the way (arXiv 2405.13868).

Plain attribution of a latent is its value times the target's total gradient. Hierarchical
attribution walks down from the target. It stops the gradient at a latent whose attribution so far
is below a threshold, so every path of the remaining circuit is strong. The latents kept at two
thresholds need not be nested: cutting a negative path can raise a latent above the threshold.
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
    """The attribution of every latent and leaf over the paths that were kept.

    Attributes:
        threshold: the threshold in the target's units.
        signed: whether attributions were compared with it, instead of their magnitudes.
        latents: value times gradient of each latent, also of those that were cut.
        kept: which latents passed the gradient on.
        leaves: contributions of the leaves, in the order of `Frozen.leaves`.
        value: the target's value.
    """

    threshold: float
    signed: bool
    latents: Float[Tensor, " latent"]
    kept: Bool[Tensor, " latent"]
    leaves: Float[Tensor, " leaf"]
    value: float

    @property
    def recovered(self) -> float:
        """The leaves' sum divided by the target's value: 1 if nothing was cut."""
        return float(self.leaves.sum()) / self.value


def hierarchical_attribution(
    frozen: Frozen, target: Target, threshold: float | int = -inf, *, signed: bool = True
) -> PathAttribution:
    """Attributions with every latent at or below the threshold cut; -inf keeps all paths.

    Args:
        frozen: the prompt.
        target: what is explained.
        threshold: threshold in the target's units; to compare prompts, use a share of
            |target.value|.
        signed: True also cuts latents with negative attribution, as the paper's code does; False
            compares magnitudes, and so keeps inhibitors.
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
