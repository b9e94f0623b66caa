"""A graph's own latents, by their influence, and how faithful so many of them are."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from saelab.analysis.circuits.ablation import (
    Faithfulness,
    LatentMetric,
    Metric,
    faithfulness,
    members_at,
    metric_with,
)
from saelab.analysis.circuits.frozen import Frozen
from saelab.analysis.circuits.graph_data import AttributionGraph
from saelab.analysis.circuits.influence import node_influence
from saelab.analysis.circuits.live import CURVE_SIZES
from saelab.console import progress
from saelab.host.host import Host, by_layer
from saelab.lm.protocol import LanguageModel

DROPPED = 0.15
"""The part of the latents that a round of thinning leaves out."""
START = 4
"""Thinning starts from this many times the number of latents that it ends with."""


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


@torch.no_grad()
def thinned(
    lm: LanguageModel,
    hosts: Sequence[Host],
    frozen: Frozen,
    chosen: Bool[Tensor, " latent"],
    n: int,
    metric: Metric | LatentMetric,
) -> Bool[Tensor, " latent"]:
    """The `n` of some latents that the target needs most, in the live model without all others.

    Each is taken away alone; the DROPPED part of them that the target needs least is left out; and
    so on, as what remains responds. The sign counts: what works against the target goes first.
    """
    hosts, kept = by_layer(hosts), chosen.nonzero()[:, 0]
    d_sae = {d.name: d.sae.d_sae for d in hosts}
    passes, size = 0, len(kept)
    while size > n:
        passes, size = passes + size, max(n, size - max(1, int(DROPPED * size)))
    with progress("Thin", passes, "passes") as bar:
        while len(kept) > n:
            left = []
            for index in kept.tolist():
                without = torch.zeros_like(chosen)
                without[kept] = True
                without[index] = False
                members = members_at(frozen, without, d_sae)
                left.append(metric_with(lm, hosts, frozen.record.tokens, members, metric))
                bar.advance(1)
            size = max(n, len(kept) - max(1, int(DROPPED * len(kept))))
            needed = torch.tensor(left, device=kept.device).argsort()[:size]
            kept = kept[needed.sort().values]
    found = torch.zeros_like(chosen)
    found[kept] = True
    return found
