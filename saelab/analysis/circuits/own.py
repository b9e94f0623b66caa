"""A graph's own latents, by their influence, and how faithful so many of them are."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from saelab.analysis.circuits.ablation import (
    Faithfulness,
    LatentMetric,
    Metric,
    judged_each,
    metrics_with,
)
from saelab.analysis.circuits.frozen import Frozen
from saelab.analysis.circuits.graph_data import AttributionGraph
from saelab.analysis.circuits.influence import node_influence
from saelab.analysis.circuits.live import CURVE_SIZES, drawn
from saelab.console import progress
from saelab.host.host import Host, by_layer
from saelab.lm.protocol import LanguageModel

DROPPED = 0.06
"""The part of the latents that a round of thinning leaves out."""
START = 2
"""Thinning starts from this many times the number of latents that it ends with. From more it ends
worse: where many latents do the same, taking one away says little of it."""
N_THINNED_DRAWS = 3
"""Thinned sets by chance, beside which one is judged."""


def graph_latents(
    frozen: Frozen, graph: AttributionGraph, n: int | None = None
) -> Bool[Tensor, " latent"]:
    """Which of the prompt's active latents are in the graph: all, or its n most influential."""
    return _first(frozen, _by_influence(frozen, graph)[:n])


def graph_curve(
    lm: LanguageModel,
    hosts: Sequence[Host],
    frozen: Frozen,
    graph: AttributionGraph,
    metric: Metric | LatentMetric,
    sizes: Sequence[int] = CURVE_SIZES,
) -> tuple[Faithfulness, ...]:
    """The graph's most influential latents, judged in the live model at each number of them."""
    ranked = _by_influence(frozen, graph)
    sets = [_first(frozen, ranked[:size]) for size in sizes if size <= len(ranked)]
    return judged_each(lm, hosts, frozen, torch.stack(sets), metric) if sets else ()


def _by_influence(frozen: Frozen, graph: AttributionGraph) -> list[int]:
    """The graph's latents as numbers of active ones, the most influential first."""
    numbers = {active.name: number for number, active in enumerate(frozen.actives)}
    found = []
    for i in np.argsort(-node_influence(graph), kind="stable").tolist():
        node = graph.nodes[i]
        if node.kind == "latent":
            assert node.latent is not None
            assert node.position is not None
            found.append(frozen.latent_index(numbers[node.name], node.latent, node.position))
    return found


def _first(frozen: Frozen, latents: Sequence[int]) -> Bool[Tensor, " latent"]:
    chosen = torch.zeros(len(frozen.values), dtype=torch.bool, device=frozen.values.device)
    chosen[list(latents)] = True
    return chosen


@dataclass(frozen=True)
class Thinned:
    """The graph's latents that thinning leaves, judged, beside others chosen in the same way.

    Attributes:
        by_chance: from as many latents drawn from those that fire, thinned likewise. Thinning looks
            at the target, so it finds some that suit it anywhere.
    """

    faithfulness: Faithfulness
    by_chance: tuple[Faithfulness, ...]


def judged_thinned(
    lm: LanguageModel,
    hosts: Sequence[Host],
    frozen: Frozen,
    graph: AttributionGraph,
    n: int,
    metric: Metric | LatentMetric,
) -> Thinned:
    """`n` of the graph's latents, thinned from START times as many."""
    start = graph_latents(frozen, graph, START * n)
    draws = drawn(frozen, metric, int(start.sum()), N_THINNED_DRAWS)
    starts = (start, *draws.to(start.device))
    left = torch.stack([thinned(lm, hosts, frozen, one, n, metric) for one in starts])
    found = judged_each(lm, hosts, frozen, left, metric)
    return Thinned(found[0], found[1:])


@torch.no_grad()
def thinned(
    lm: LanguageModel,
    hosts: Sequence[Host],
    frozen: Frozen,
    chosen: Bool[Tensor, " latent"],
    n: int,
    metric: Metric | LatentMetric,
) -> Bool[Tensor, " latent"]:
    """The `n` of some latents that keep the target closest to its value in the whole model.

    Each is taken away alone, with all that are not chosen. The DROPPED part of them whose absence
    leaves the target closest to its value is left out; and so on, as what remains responds.
    """
    hosts, kept = by_layer(hosts), chosen.nonzero()[:, 0]
    (whole,) = metrics_with(lm, hosts, frozen, torch.zeros_like(chosen)[None], metric, others=True)
    passes, size = 0, len(kept)
    while size > n:
        passes, size = passes + size, max(n, size - max(1, int(DROPPED * size)))
    with progress("Thin", passes, "circuits") as bar:
        while len(kept) > n:
            far = []
            for value in metrics_with(lm, hosts, frozen, _each_without(kept, chosen), metric):
                far.append(abs(value - whole))
                bar.advance(1)
            size = max(n, len(kept) - max(1, int(DROPPED * len(kept))))
            needed = torch.tensor(far, device=kept.device).argsort(descending=True)[:size]
            kept = kept[needed.sort().values]
    found = torch.zeros_like(chosen)
    found[kept] = True
    return found


def _each_without(
    kept: Int[Tensor, " kept"], chosen: Bool[Tensor, " latent"]
) -> Bool[Tensor, "kept latent"]:
    """Some latents, each of them left out once."""
    ways = torch.zeros_like(chosen).index_fill(0, kept, value=True).repeat(len(kept), 1)
    ways[range(len(kept)), kept] = False
    return ways
