"""A prompt's circuit judged in the live model, and the latents that gradients there point to."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.analysis.circuits.ablation import (
    Faithfulness,
    LatentMetric,
    Members,
    Metric,
    faithfulness,
)
from saelab.analysis.circuits.dictionaries import Dictionary
from saelab.analysis.circuits.frozen import Frozen
from saelab.analysis.circuits.hierarchical import hierarchical_attribution
from saelab.analysis.circuits.patching import latent_effects
from saelab.analysis.circuits.targets import Target
from saelab.lm.protocol import LanguageModel

N_STEPS = 10
"""Of integrated gradients: at midpoints, within a fraction of a percent (arXiv 2403.19647)."""


@dataclass(frozen=True)
class GradientCircuit:
    """The latents with the largest effects in the live model.

    Attributes:
        agreement: correlation of the graph's attributions with these effects, over all active
            latents; they differ by what attention, norms and MLPs do in response. None where
            either does not vary.
    """

    members: Members
    faithfulness: Faithfulness
    agreement: float | None


def live_metric(
    frozen: Frozen, dictionaries: Sequence[Dictionary], target: Target
) -> Metric | LatentMetric:
    """What a target is in the live model."""
    if target.latent is not None:
        name = frozen.actives[int(frozen.owner[target.latent])].name
        own = next(d for d in dictionaries if d.name == name)
        reading = target.reading
        return LatentMetric(own, reading.weights[0], float(reading.constant[0]))
    assert target.coefficients is not None
    coefficients = target.coefficients

    def metric(logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, ""]:
        return logits[0, target.position].to(coefficients.dtype) @ coefficients

    return metric


def gradient_circuit(
    lm: LanguageModel,
    dictionaries: Sequence[Dictionary],
    frozen: Frozen,
    target: Target,
    n_members: int,
) -> GradientCircuit | None:
    """The `n_members` latents with the largest effects by integrated gradients, judged.

    None where no latent fires, or the target is a latent.
    """
    metric = live_metric(frozen, dictionaries, target)
    if isinstance(metric, LatentMetric):
        return None
    tokens = frozen.record.tokens[0]
    effects = {
        d.name: latent_effects(lm, d, tokens, metric, n_steps=N_STEPS).latents for d in dictionaries
    }
    sizes = torch.cat([effect.flatten() for effect in effects.values()]).abs()
    n = min(n_members, int((sizes > 0).sum()))
    if n == 0:
        return None
    least = sizes.topk(n).values[-1]
    members = {name: effect.abs() >= least for name, effect in effects.items()}
    plain = hierarchical_attribution(frozen, target).latents
    # Taking a latent away undoes what it gives, so effects have the other sign.
    lost = -torch.cat(
        [effects[active.name][active.codes.row, active.codes.latent] for active in frozen.actives]
    )
    judged = faithfulness(lm, dictionaries, tokens[None], members, metric)
    return GradientCircuit(members, judged, _correlation(plain, lost.to(plain.dtype)))


def _correlation(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> float | None:
    a, b = a - a.mean(), b - b.mean()
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size > 0 else None
