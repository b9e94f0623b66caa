"""From runs and a prompt to a circuit with its figures: the work of `saelab circuit`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from pydantic import Field
from torch import Tensor

from saelab.analysis.attention.loadings import HeadLoading, head_loadings
from saelab.analysis.circuits.ablation import Faithfulness, faithfulness, members_at, noise
from saelab.analysis.circuits.asked import asked_target, check_number
from saelab.analysis.circuits.edits import Members
from saelab.analysis.circuits.frozen import Frozen, freeze
from saelab.analysis.circuits.graph import AttributionGraph, GraphOptions, attribution_graph
from saelab.analysis.circuits.graph_file import own_path, save_graph_hdf5
from saelab.analysis.circuits.graph_json import save_graph
from saelab.analysis.circuits.hierarchical import hierarchical_attribution
from saelab.analysis.circuits.influence import GraphScores, PruneOptions, graph_scores, prune
from saelab.analysis.circuits.live import (
    GradientCircuit,
    TakenAway,
    by_chance,
    gradient_circuit,
    interventions,
    live_metric,
)
from saelab.analysis.circuits.own import Thinned, graph_curve, graph_latents, judged_thinned
from saelab.analysis.circuits.rows import graph_bytes
from saelab.analysis.circuits.targets import Target
from saelab.analysis.plans import circuit_plan
from saelab.config import UsageError
from saelab.console import stage
from saelab.host.host import Host, by_layer
from saelab.lm.prompt import encode_prompt
from saelab.lm.protocol import LanguageModel
from saelab.lock import writing
from saelab.training.run import Run


class CircuitOptions(GraphOptions, PruneOptions):
    """What to explain, and how much of the graph to keep."""

    target: str | None = None
    """The token whose logit is explained; default: the most likely next token."""
    against: str | None = None
    """Explain the difference to this token's logit, instead of to the mean logit."""
    latent: str | None = None
    """Explain a latent instead of a token: SAE:NUMBER at the last position where it fires, or
    SAE:NUMBER@POSITION (0 is the first token, <bos> if there is one)."""
    threshold: float | None = Field(default=None, ge=0)
    """Judge the latents that hierarchical attribution keeps at this share of the target's value,
    instead of the pruned graph's (arXiv 2405.13868)."""
    n_latents: int | None = Field(default=None, gt=0)
    """Judge this number of the graph's latents, the most influential ones, instead of those that
    pruning keeps."""
    n_thinned: int = Field(default=0, ge=0)
    """Also judge this number of the graph's latents, thinned in the live model from the twice as
    many that are most influential: round by round those are left out without which the target stays
    closest to its value. Beside as many of random latents, thinned likewise. 0 for none."""
    n_members: int = Field(default=40, ge=0)
    """Also judge this many of all active latents: those with the most support for the target by
    integrated gradients in the live model. They include latents that direct attention. 0 for
    none."""
    curve: bool = False
    """Also judge the best 5, 10, 20, 40, ... of either, up to all of the graph's and all that
    support the target."""
    n_interventions: int = Field(default=5, ge=0)
    """Take this many latents away one by one, those that give the target most, and compare what the
    graph predicts with what the live model does. 0 for none."""
    n_attention: int = Field(default=5, ge=0)
    """Say why a head looked where it did, for this number of attention weights: those that carry
    most of the target's value between tokens. 0 for none."""


@dataclass(frozen=True)
class Circuit:
    """A prompt's circuit.

    Attributes:
        graph: as computed, with all its leaves.
        pruned: its most influential part.
        scores: the shares of the graph that latents explain.
        faithfulness: faithfulness of the graph's latents in the live model.
        members: indices of these active latents.
        by_chance: the same for random sets of the same number of active latents.
        by_gradients: the same for the latents that support it most by integrated gradients.
        loadings: the attention weights that carry most of the target's value.
        interventions: predicted and live effects of single latents.
        thinned: faithfulness of the graph's latents that thinning leaves; None unless asked for.
        curve: faithfulness of the graph's most influential latents by their number, smallest
            first; empty unless asked for.
    """

    graph: AttributionGraph
    pruned: AttributionGraph
    scores: GraphScores
    faithfulness: Faithfulness
    members: Members
    by_chance: tuple[Faithfulness, ...]
    by_gradients: GradientCircuit | None
    loadings: tuple[HeadLoading, ...]
    interventions: tuple[TakenAway, ...] = ()
    curve: tuple[Faithfulness, ...] = ()
    thinned: Thinned | None = None

    @property
    def caveat(self) -> str:
        """Why no set of latents has meaningful ratios on this prompt; empty if chance says none."""
        return noise(self.by_chance)


def explain(
    lm: LanguageModel,
    hosts: Sequence[Host],
    prompt: str,
    options: CircuitOptions | None = None,
) -> Circuit:
    """The circuit behind the next token after a prompt, or behind a latent's value on it.

    Raises:
        UsageError: the prompt or a token is not the model's, or an SAE's site, variant or
            model has no exact rule.
    """
    options, hosts = options or CircuitOptions(), by_layer(hosts)
    check_sizes(options)
    tokens = encode_prompt(lm, prompt)
    if options.latent is not None:
        check_number(hosts, options.latent)
    stage("Read the prompt")
    frozen = freeze(lm, hosts, tokens)
    target, facts = asked_target(lm, frozen, (options.target, options.against), options.latent)
    n_nodes = min(options.max_nodes, len(frozen.values))
    circuit_plan(lm, tokens, n_nodes, graph_bytes(frozen, n_nodes)).announce()
    texts = tuple(lm.tokenizer.token(token) for token in tokens.tolist())
    facts |= {"prompt": prompt, "model": lm.info.name}
    graph = attribution_graph(frozen, target, texts, options, facts)
    _check_enough(graph, options)
    pruned = prune(graph, options)
    sizes = {d.name: d.sae.d_sae for d in hosts}
    members = members_at(frozen, _chosen(frozen, target, (graph, pruned), options), sizes)
    metric = live_metric(frozen, hosts, target)
    stage("Judge in the live model")
    judged = faithfulness(lm, hosts, tokens[None], members, metric)
    other = None
    if options.n_members:
        other = gradient_circuit(lm, hosts, frozen, target, options.n_members, curve=options.curve)
    scores = graph_scores(graph)
    chance = by_chance(lm, hosts, frozen, metric, judged)
    loadings = head_loadings(frozen, target, options.n_attention)
    single = interventions(lm, hosts, frozen, target, options.n_interventions)
    curve = graph_curve(lm, hosts, frozen, graph, metric) if options.curve else ()
    few = None
    if options.n_thinned:
        few = judged_thinned(lm, hosts, frozen, graph, options.n_thinned, metric)
    parts = scores, judged, members, chance, other, loadings, single, curve, few
    circuit = Circuit(graph, pruned, *parts)
    for found in (graph, pruned):
        found.facts.update(_judgements(circuit))
    return circuit


def check_sizes(options: CircuitOptions) -> None:
    """Refuse to judge more latents than the graph may have.

    Raises:
        UsageError: the message names the option.
    """
    for name in ("n_latents", "n_thinned"):
        if (getattr(options, name) or 0) > options.max_nodes:
            raise UsageError(
                f"--{name.replace('_', '-')} {getattr(options, name)} is more than the graph's "
                f"{options.max_nodes} latents; lower it, or raise --max-nodes."
            )


def _check_enough(graph: AttributionGraph, options: CircuitOptions) -> None:
    """Refuse to judge more latents than the graph has."""
    n = int(graph.counts["latents"])
    for name in ("n_latents", "n_thinned"):
        if (wanted := getattr(options, name) or 0) > n:
            raise UsageError(
                f"--{name.replace('_', '-')} {wanted} is more than the graph's {n} latents; lower "
                "it, or raise --stop-share."
            )


def _judgements(found: Circuit) -> dict[str, Any]:
    """The live model's judgement of a circuit and its scores, as plain values."""
    values: dict[str, Any] = {"scores": vars(found.scores)}
    values["faithfulness"] = _beside_chance(found, found.caveat)
    values["attention"] = [loading.values() for loading in found.loadings]
    values["interventions"] = [vars(single) for single in found.interventions]
    if found.thinned is not None:
        values["thinned"] = _beside_chance(found.thinned, found.caveat)
    if found.curve:
        values["graph_curve"] = [judged.values(found.caveat) for judged in found.curve]
    if (other := found.by_gradients) is not None:
        apart = {"agreement": other.agreement, "gaps": dict(other.gaps)}
        values["by_gradients"] = _beside_chance(other, found.caveat) | apart
        if other.curve:
            values["curve"] = [judged.values(found.caveat) for judged in other.curve]
    return values


def _beside_chance(judged: "Circuit | GradientCircuit | Thinned", caveat: str) -> dict[str, Any]:
    """How latents were judged, and as many random ones; without ratios beside a caveat."""
    values: dict[str, Any] = judged.faithfulness.values(caveat)
    return values if values["caveat"] else values | chance_values(judged.by_chance)


def chance_values(draws: Sequence[Faithfulness]) -> dict[str, dict[str, float | int]]:
    """Mean ratios of random circuits, the number of circuits, and the ratios' spread."""
    known = [draw for draw in draws if draw.whole != draw.empty]
    if not known:
        return {}
    kept = np.array([draw.faithfulness for draw in known])
    left = np.array([draw.completeness for draw in known])
    ratios = {"faithfulness": float(kept.mean()), "completeness": float(left.mean())}
    return {"by_chance": {**ratios, "spread": float(kept.std()), "n_draws": len(known)}}


def explain_runs(
    lm: LanguageModel, runs: Sequence[Run], prompt: str, options: CircuitOptions | None = None
) -> Circuit:
    """The same for runs' SAEs.

    Raises:
        UsageError: as `explain`, or a run was trained on another model.
    """
    return explain(lm, [Host.of_run(run, lm) for run in runs], prompt, options)


def save_circuit(found: Circuit, runs: Sequence[Run], prompt: str, lm: LanguageModel) -> Path:
    """Save a circuit in the first of its runs, where the browser finds it.

    It writes two files with the same name: the pruned graph as JSON, whose path is returned, and
    the whole graph as HDF5.
    """
    found.pruned.facts["runs"] = found.graph.facts["runs"] = [str(run.path) for run in runs]
    token = found.graph.facts.get("token")
    name = found.graph.facts["target"] if token is None else lm.tokenizer.token(token)
    path = own_path(circuit_path(runs[0].path, prompt, name), found.graph)
    with writing(runs[0].path) as lock:
        lock.check()
        save_graph(found.pruned, path)
        save_graph_hdf5(found.graph, path.with_suffix(".h5"))
    return path


def circuit_path(run: Path, prompt: str, target: str) -> Path:
    """Where a run keeps this circuit; the name comes from the prompt's end and the target."""
    words = [*prompt.split()[-6:], "to", *target.split()]
    plain = ["".join(c for c in word if c.isalnum()) for word in words]
    slug = "-".join(word for word in plain if word)
    return run / "circuits" / f"{slug[-80:].strip('-').lower()}.json"


def _chosen(
    frozen: Frozen,
    target: Target,
    graphs: tuple[AttributionGraph, AttributionGraph],
    options: CircuitOptions,
) -> Bool[Tensor, " latent"]:
    """The latents that are judged, of the whole graph or the pruned one."""
    if options.threshold is not None:
        limit = options.threshold * abs(target.value)
        return hierarchical_attribution(frozen, target, limit).kept
    if options.n_latents is not None:
        return graph_latents(frozen, graphs[0], options.n_latents)
    return graph_latents(frozen, graphs[1])


def largest_inputs(graph: AttributionGraph, n: int) -> list[tuple[str, float]]:
    """The nodes with the largest attribution over all paths, as labels with signed values.

    Nodes where no SAE is applied are left out; see `left_out_inputs`.
    """
    given = graph.attributions()[:-1]
    found = [i for i in np.argsort(-np.abs(given)).tolist() if not graph.left_out(graph.nodes[i])]
    return [(graph.nodes[i].label(), float(given[i])) for i in found[:n]]


def left_out_inputs(graph: AttributionGraph) -> list[tuple[int, list[str], float]]:
    """Positions where SAEs are not applied, and the contributions from there.

    The contributions are summed over error nodes that carry the whole activation, and at positions
    without any SAE over all other nodes too; in the target's units.
    """
    saes = graph.not_applied
    places = sorted({place for where in saes.values() for place in where})
    total = dict.fromkeys(places, 0.0)
    for node, given in zip(graph.nodes, graph.attributions().tolist(), strict=True):
        if node.position is not None and graph.left_out(node):
            total[node.position] += given
    names = {p: [name for name, where in saes.items() if p in where] for p in places}
    return [(place, names[place], total[place]) for place in places]
