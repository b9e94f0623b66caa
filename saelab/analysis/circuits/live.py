"""A prompt's circuit judged in the live model, and the latents that gradients there point to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.analysis.circuits.ablation import (
    Faithfulness,
    LatentMetric,
    Metric,
    faithfulness,
    judged_each,
    metrics_with,
)
from saelab.analysis.circuits.edits import Members
from saelab.analysis.circuits.frozen import Frozen
from saelab.analysis.circuits.hierarchical import hierarchical_attribution
from saelab.analysis.circuits.patching import LatentEffects, latent_effects
from saelab.analysis.circuits.targets import Target
from saelab.host.host import Host, by_layer
from saelab.lm.protocol import LanguageModel

N_DRAWS = 5
"""Circuits by chance, beside which one is judged."""
CURVE_SIZES = tuple(5 * 2**n for n in range(12))

Support = Mapping[str, Float[Tensor, "pos d_sae"]]
"""By SAE name, what each latent gives a metric at each position, in its units."""


@dataclass(frozen=True)
class GradientCircuit:
    """The latents that support the target most in the live model.

    Attributes:
        gaps: by SAE name, how far what its latents give is from summing to what the model
            loses without them, as a share of that.
        agreement: correlation of the graph's attributions with what latents give here, over all
            active latents; they differ by what attention, norms and MLPs do in response. None
            where either does not vary.
        by_chance: circuits of as many latents drawn from those that fire.
        curve: circuits of other sizes, smallest first; empty unless asked for.
    """

    members: Members
    faithfulness: Faithfulness
    agreement: float | None
    gaps: Mapping[str, float]
    by_chance: tuple[Faithfulness, ...] = ()
    curve: tuple[Faithfulness, ...] = ()


def live_metric(frozen: Frozen, hosts: Sequence[Host], target: Target) -> Metric | LatentMetric:
    """What a target is in the live model."""
    if target.latent is not None:
        name = frozen.actives[int(frozen.owner[target.latent])].name
        own = next(d for d in by_layer(hosts) if d.name == name)
        reading = target.reading
        return LatentMetric(own, reading.weights[0], float(reading.constant[0]))
    assert target.coefficients is not None
    coefficients = target.coefficients

    def metric(logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, ""]:
        return logits[0, target.position].to(coefficients.dtype) @ coefficients

    return metric


def support(
    lm: LanguageModel,
    hosts: Sequence[Host],
    tokens: Int[Tensor, " pos"],
    metric: Metric,
) -> Support:
    """What each latent gives the metric: minus what taking it away does, by integrated gradients.

    Each SAE's latents are taken away together, the other SAEs' stay.
    """
    return {name: -found.latents for name, found in effects(lm, hosts, tokens, metric).items()}


def effects(
    lm: LanguageModel,
    hosts: Sequence[Host],
    tokens: Int[Tensor, " pos"],
    metric: Metric,
) -> dict[str, LatentEffects]:
    """By SAE name, what taking its latents away does, by integrated gradients."""
    return {d.name: latent_effects(lm, d, tokens, metric) for d in by_layer(hosts)}


def strongest(given: Support, n: int) -> Members:
    """The n latents that give most, each at its position; fewer where fewer give anything.

    What works against the metric is no part of it: taken away together with the rest it would
    hide what the rest does.
    """
    if not given:
        return {}
    sizes = torch.cat([values.flatten() for values in given.values()])
    n = min(n, int((sizes > 0).sum()))
    if n == 0:
        return {name: torch.zeros_like(values, dtype=torch.bool) for name, values in given.items()}
    least = sizes.topk(n).values[-1]
    return {name: values >= least for name, values in given.items()}


def faithfulness_curve(
    lm: LanguageModel,
    hosts: Sequence[Host],
    tokens: Int[Tensor, " pos"],
    metric: Metric,
    given: Support,
    sizes: Sequence[int] = CURVE_SIZES,
) -> tuple[Faithfulness, ...]:
    """Circuits of the strongest latents, judged at each size up to all that support the metric."""
    limit = sum(int((values > 0).sum()) for values in given.values())
    wanted = [size for size in sizes if size <= limit]
    return tuple(
        faithfulness(lm, hosts, tokens[None], strongest(given, size), metric) for size in wanted
    )


def gradient_circuit(
    lm: LanguageModel,
    hosts: Sequence[Host],
    frozen: Frozen,
    target: Target,
    n_members: int,
    *,
    curve: bool = False,
) -> GradientCircuit | None:
    """The `n_members` latents that give the target most by integrated gradients, judged.

    None where none gives it anything, or the target is a latent.
    """
    metric = live_metric(frozen, hosts, target)
    if isinstance(metric, LatentMetric):
        return None
    tokens = frozen.record.tokens[0]
    found = effects(lm, hosts, tokens, metric)
    given = {name: -one.latents for name, one in found.items()}
    members = strongest(given, n_members)
    if not any(bool(chosen.any()) for chosen in members.values()):
        return None
    plain = hierarchical_attribution(frozen, target).latents
    live = torch.cat(
        [given[active.name][active.codes.row, active.codes.latent] for active in frozen.actives]
    )
    judged = faithfulness(lm, hosts, tokens[None], members, metric)
    return GradientCircuit(
        members,
        judged,
        _correlation(plain, live.to(plain.dtype)),
        {name: one.gap for name, one in found.items()},
        by_chance(lm, hosts, frozen, metric, judged),
        faithfulness_curve(lm, hosts, tokens, metric, given) if curve else (),
    )


@dataclass(frozen=True)
class TakenAway:
    """What taking one latent away at its position does to the target.

    Attributes:
        predicted: minus what it gives over all paths of the frozen model.
        live: what changes in the live model, where attention, norms and MLPs respond.
    """

    name: str
    latent: int
    position: int
    predicted: float
    live: float


def interventions(
    lm: LanguageModel,
    hosts: Sequence[Host],
    frozen: Frozen,
    target: Target,
    n: int,
) -> tuple[TakenAway, ...]:
    """The `n` latents that give the target most, by magnitude, each taken away on its own."""
    given = hierarchical_attribution(frozen, target).latents
    largest = given.abs().topk(min(n, len(given))).indices
    metric, found = live_metric(frozen, hosts, target), []
    indices = largest[given[largest] != 0].tolist()
    # The first takes nothing away.
    away = torch.zeros(len(indices) + 1, len(given), dtype=torch.bool, device=given.device)
    away[range(1, len(away)), indices] = True
    whole, *without = metrics_with(lm, hosts, frozen, away, metric, others=True)
    for index, left in zip(indices, without, strict=True):
        number = int(frozen.owner[index])
        active, entry = frozen.actives[number], index - frozen.spans[number].start
        latent, position = int(active.codes.latent[entry]), int(active.codes.row[entry])
        predicted = -float(given[index])
        found.append(TakenAway(active.name, latent, position, predicted, left - whole))
    return tuple(found)


def by_chance(
    lm: LanguageModel,
    hosts: Sequence[Host],
    frozen: Frozen,
    metric: Metric | LatentMetric,
    judged: Faithfulness,
    *,
    n_draws: int = N_DRAWS,
) -> tuple[Faithfulness, ...]:
    """Circuits of as many latents as was `judged`, drawn from those that fire on the prompt.

    Before a latent that is explained, since no other can be in its circuit. None if none was.
    """
    if not judged.n_members:
        return ()
    draws = drawn(frozen, metric, judged.n_members, n_draws)
    return judged_each(lm, hosts, frozen, draws, metric)


def drawn(
    frozen: Frozen, metric: Metric | LatentMetric, n: int, n_draws: int
) -> Bool[Tensor, "draw latent"]:
    """Sets of `n` latents of those that fire; before a latent, if that is what is explained."""
    generator = torch.Generator().manual_seed(0)
    depths = torch.tensor([active.place.depth for active in frozen.actives])
    owner = frozen.owner.cpu()
    limit = metric.host.place.depth if isinstance(metric, LatentMetric) else inf
    candidates = (depths[owner] < limit).nonzero()[:, 0]
    draws = torch.zeros(n_draws, len(owner), dtype=torch.bool)
    for draw in draws:
        order = candidates[torch.randperm(len(candidates), generator=generator)]
        draw[order[:n]] = True
    return draws


def _correlation(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> float | None:
    a, b = a - a.mean(), b - b.mean()
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size > 0 else None
