"""A graph's own latents, by their influence, and how faithful so many of them are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from saelab.analysis.circuits.ablation import (
    Faithfulness,
    LatentMetric,
    Metric,
    faithfulness,
    members_at,
    metric_with,
    metrics_with,
)
from saelab.analysis.circuits.edits import Members
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
    numbers = {active.name: number for number, active in enumerate(frozen.actives)}
    chosen = torch.zeros(len(frozen.values), dtype=torch.bool, device=frozen.values.device)
    order = np.argsort(-node_influence(graph), kind="stable").tolist()
    nodes = [graph.nodes[i] for i in order if graph.nodes[i].kind == "latent"]
    for node in nodes[:n]:
        assert node.latent is not None
        assert node.position is not None
        chosen[frozen.latent_index(numbers[node.name], node.latent, node.position)] = True
    return chosen


def graph_curve(
    lm: LanguageModel,
    hosts: Sequence[Host],
    frozen: Frozen,
    graph: AttributionGraph,
    metric: Metric | LatentMetric,
    sizes: Sequence[int] = CURVE_SIZES,
) -> tuple[Faithfulness, ...]:
    """The graph's most influential latents, judged in the live model at each number of them."""
    hosts = by_layer(hosts)
    d_sae = {d.name: d.sae.d_sae for d in hosts}
    most = sum(node.kind == "latent" for node in graph.nodes)
    found = []
    for n in (size for size in sizes if size <= most):
        members = members_at(frozen, graph_latents(frozen, graph, n), d_sae)
        found.append(faithfulness(lm, hosts, frozen.record.tokens, members, metric))
    return tuple(found)


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
    sizes = {d.name: d.sae.d_sae for d in hosts}
    found = []
    for chosen in (start, *draws.to(start.device)):
        left = thinned(lm, hosts, frozen, chosen, n, metric)
        members = members_at(frozen, left, sizes)
        found.append(faithfulness(lm, hosts, frozen.record.tokens, members, metric))
    return Thinned(found[0], tuple(found[1:]))


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
    d_sae = {d.name: d.sae.d_sae for d in hosts}
    tokens = frozen.record.tokens
    every = {d.name: d.sae.W_dec.new_ones(1, d.sae.d_sae, dtype=torch.bool) for d in hosts}
    whole = metric_with(lm, hosts, tokens, every, metric)
    passes, size = 0, len(kept)
    while size > n:
        passes, size = passes + size, max(n, size - max(1, int(DROPPED * size)))
    with progress("Thin", passes, "circuits") as bar:
        while len(kept) > n:
            ways = (_without(frozen, kept, index, d_sae) for index in kept.tolist())
            far = []
            for value in metrics_with(lm, hosts, tokens[0], ways, metric):
                far.append(abs(value - whole))
                bar.advance(1)
            size = max(n, len(kept) - max(1, int(DROPPED * len(kept))))
            needed = torch.tensor(far, device=kept.device).argsort(descending=True)[:size]
            kept = kept[needed.sort().values]
    found = torch.zeros_like(chosen)
    found[kept] = True
    return found


def _without(
    frozen: Frozen, kept: Int[Tensor, " kept"], index: int, d_sae: Mapping[str, int]
) -> Members:
    """Some latents but one of them."""
    chosen = torch.zeros(len(frozen.values), dtype=torch.bool, device=kept.device)
    chosen[kept] = True
    chosen[index] = False
    return members_at(frozen, chosen, d_sae)
