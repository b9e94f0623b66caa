"""Whether a circuit does what its graph says: ablation of latents in the live model.

A graph is computed with attention and norms frozen. A graph that explains all of a logit may still
not be enough for the model to produce it. So a set of latents is judged by running the model: at
every SAE's site, all other latents are set to zero (or to their means). Each SAE reads what the
changed model computes, and everything else (errors, attention, MLPs) runs as usual. The two ratios
are those of arXiv 2403.19647.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.analysis.circuits.edits import Members, ablation_edits
from saelab.analysis.circuits.frozen import Frozen
from saelab.config import UsageError
from saelab.host.host import Host, by_layer
from saelab.lm.protocol import Edit, LanguageModel

Metric = Callable[[Float[Tensor, "batch pos d_vocab"]], Float[Tensor, ""]]
"""Maps logits to the number that a circuit explains."""
MOST_BESIDE = {"cpu": 32, "cuda": 256}
MOST_BYTES = {"cpu": 2**28, "cuda": 2**31}
"""Circuits in one pass of the model, and bytes of their logits and masks."""
LITTLE = 0.05
"""If all latents together change the metric by less than this share of it, ratios mean little."""
BEYOND = 1.0
"""Nor do they if random circuits leave the range between none and all by this many times it."""


@dataclass(frozen=True)
class LatentMetric:
    """A latent's value in the live model: the metric of a local circuit.

    Attributes:
        host: the latent's SAE in its model.
        weights: the latent's weights of each position at the SAE's site.
        constant: constant that is added.
    """

    host: Host
    weights: Float[Tensor, "pos d_in"]
    constant: float

    def value(
        self, lm: LanguageModel, tokens: Int[Tensor, "batch pos"], edits: Mapping[str, Edit]
    ) -> Float[Tensor, " batch"]:
        """The latent's value in each context, with the model edited upstream."""
        site = self.host.reads
        x = lm.run(tokens, edits=edits, hooks=[site]).activations[site]
        return (x.to(self.weights.dtype) * self.weights).sum((1, 2)) + self.constant


@dataclass(frozen=True)
class Faithfulness:
    """The metric in the live model under four sets of latents, and two ratios.

    Attributes:
        whole: metric with all latents.
        circuit: with the circuit's latents only.
        complement: with all other latents only.
        empty: without any latent.
        n_members: latents in the circuit, counted at each position.
    """

    whole: float
    circuit: float
    complement: float
    empty: float
    n_members: int

    @property
    def faithfulness(self) -> float:
        """(circuit - empty) / (whole - empty): 1 if the circuit suffices."""
        return (self.circuit - self.empty) / (self.whole - self.empty)

    @property
    def completeness(self) -> float:
        """(complement - empty) / (whole - empty): 0 if the other latents contribute nothing."""
        return (self.complement - self.empty) / (self.whole - self.empty)

    @property
    def caveat(self) -> str:
        """Why the ratios mean little or nothing, as a sentence; empty if they are meaningful."""
        change = self.whole - self.empty
        if not self.n_members:
            return "No latent is in the circuit, so nothing was judged."
        if not change:
            return "Without all latents the model says the same, so there are no ratios."
        if abs(change) < LITTLE * max(abs(self.whole), abs(self.empty)):
            return (
                f"All latents together change the target by {change:+.3g} only, so no ratios are "
                "given."
            )
        return ""

    def values(self, caveat: str = "") -> dict[str, float | int | str | None]:
        """Everything as plain values; ratios are None beside a caveat, its own or this one."""
        caveat = self.caveat or caveat
        return {
            "whole": self.whole,
            "circuit": self.circuit,
            "complement": self.complement,
            "empty": self.empty,
            "faithfulness": None if caveat else self.faithfulness,
            "completeness": None if caveat else self.completeness,
            "n_members": self.n_members,
            "caveat": caveat,
        }


def noise(draws: Sequence[Faithfulness]) -> str:
    """Why random circuits show that ratios mean nothing, as a sentence; empty if they do not."""
    if not draws or not (change := draws[0].whole - draws[0].empty):
        return ""
    beyond = sum(max(-d.faithfulness, d.faithfulness - 1, 0) for d in draws) / len(draws)
    if beyond <= BEYOND:
        return ""
    return (
        f"All latents together change the target by {change:+.3g} only, and random ones, as many "
        f"as the graph's, leave that range by {beyond * abs(change):.3g} on average, so ratios "
        "would be noise and none are given."
    )


@torch.no_grad()
def faithfulness(
    lm: LanguageModel,
    hosts: Sequence[Host],
    tokens: Int[Tensor, "batch pos"],
    members: Members,
    metric: Metric | LatentMetric,
    means: Mapping[str, Float[Tensor, " d_sae"]] | None = None,
) -> Faithfulness:
    """How much of the metric a circuit alone keeps, and how much remains without it.

    Args:
        lm: the model.
        hosts: its SAEs.
        tokens: prompts of one length.
        members: the circuit; an SAE that is not named has no members.
        metric: a function of the logits, or a latent's value; then only SAEs before the latent are
            ablated.
        means: values of ablated latents, by SAE name; default: zero.

    Raises:
        UsageError: `members` names an unknown SAE.
    """
    hosts = by_layer(hosts)
    every = {d.name: d.sae.W_dec.new_ones(1, d.sae.d_sae, dtype=torch.bool) for d in hosts}

    def kept(chosen: Members) -> float:
        return metric_with(lm, hosts, tokens, chosen, metric, means)

    return Faithfulness(
        whole=kept(every),
        circuit=kept(members),
        complement=kept(every | {name: ~chosen for name, chosen in members.items()}),
        empty=kept({}),
        n_members=int(sum(chosen.sum() for chosen in members.values())),
    )


@torch.no_grad()
def metric_with(
    lm: LanguageModel,
    hosts: Sequence[Host],
    tokens: Int[Tensor, "batch pos"],
    members: Members,
    metric: Metric | LatentMetric,
    means: Mapping[str, Float[Tensor, " d_sae"]] | None = None,
) -> float:
    """The metric with only the latents in `members`; arguments and errors as for `faithfulness`."""
    hosts = by_layer(hosts)
    if unknown := set(members) - {d.name for d in hosts}:
        raise UsageError(
            f"The circuit has latents of {', '.join(sorted(unknown))}, which is not among the SAEs."
        )
    hosts = _before(hosts, metric)
    nothing = {d.name: d.sae.W_dec.new_zeros(1, d.sae.d_sae, dtype=torch.bool) for d in hosts}
    edits = ablation_edits(hosts, tokens, nothing | members, means)
    if isinstance(metric, LatentMetric):
        return float(metric.value(lm, tokens, edits).mean())
    return float(metric(lm.logits(tokens, edits)))


@torch.no_grad()
def metrics_with(
    lm: LanguageModel,
    hosts: Sequence[Host],
    frozen: Frozen,
    chosen: Bool[Tensor, "circuit latent"],
    metric: Metric | LatentMetric,
    *,
    others: bool = False,
) -> Iterator[float]:
    """The metric of a prompt with only the active latents of each of many circuits, in their order.

    With `others`, with all latents but these. As `metric_with` of one after the other, but for
    rounding: a pass of the model has many of them side by side.
    """
    sizes = {d.name: d.sae.d_sae for d in hosts}
    hosts, tokens = _before(by_layer(hosts), metric), frozen.record.tokens
    kind = lm.device.type
    a_circuit = tokens.shape[1] * (4 * lm.info.d_vocab + sum(sizes.values()))
    beside = max(1, min(MOST_BESIDE[kind], MOST_BYTES[kind] // a_circuit))
    for some in chosen.to(frozen.values.device).split(beside):
        members = members_at(frozen, some, sizes)
        if others:
            members = {name: ~mask for name, mask in members.items()}
        rows = tokens.expand(len(some), -1)
        edits = ablation_edits(hosts, rows, members)
        if isinstance(metric, LatentMetric):
            yield from metric.value(lm, rows, edits).tolist()
        else:
            yield from (float(metric(one[None])) for one in lm.logits(rows, edits))


def judged_each(
    lm: LanguageModel,
    hosts: Sequence[Host],
    frozen: Frozen,
    chosen: Bool[Tensor, "circuit latent"],
    metric: Metric | LatentMetric,
) -> tuple[Faithfulness, ...]:
    """`faithfulness` of several circuits of a prompt's active latents, side by side."""
    nothing = torch.zeros_like(chosen[:1])
    ways = torch.cat([nothing, chosen])
    empty, *alone = metrics_with(lm, hosts, frozen, ways, metric)
    whole, *left = metrics_with(lm, hosts, frozen, ways, metric, others=True)
    pairs = zip(alone, left, chosen.sum(1).tolist(), strict=True)
    return tuple(Faithfulness(whole, a, b, empty, n) for a, b, n in pairs)


def _before(hosts: list[Host], metric: Metric | LatentMetric) -> list[Host]:
    """The SAEs whose latents act on the metric: of a latent, those before it."""
    if not isinstance(metric, LatentMetric):
        return hosts
    return [d for d in hosts if d.place.depth < metric.host.place.depth]


def members_at(
    frozen: Frozen, chosen: Bool[Tensor, "*circuit latent"], sizes: Mapping[str, int]
) -> Members:
    """Active latents of a prompt as members, each at its own position.

    Args:
        frozen: the prompt.
        chosen: selects among its active latents; several selections are circuits side by side.
        sizes: d_sae by SAE name.
    """
    members: Members = {}
    for number, active in enumerate(frozen.actives):
        shape = (*chosen.shape[:-1], frozen.n_pos, sizes[active.name])
        mask = torch.zeros(shape, dtype=torch.bool, device=chosen.device)
        mask[..., active.codes.row, active.codes.latent] = chosen[..., frozen.spans[number]]
        members[active.name] = mask
    return members


def everywhere(members: Members) -> Members:
    """The same latents at every position, for any prompt length."""
    return {name: mask.any(0, keepdim=True) for name, mask in members.items()}


@torch.no_grad()
def mean_codes(
    lm: LanguageModel, hosts: Sequence[Host], tokens: Int[Tensor, "batch pos"]
) -> dict[str, Float[Tensor, " d_sae"]]:
    """Each latent's mean activation over reference contexts, by SAE name.

    Over the tokens where its SAE is applied.
    """
    hosts = by_layer(hosts)
    sites = {site for d in hosts for site in d.sites}
    seen = lm.capture(tokens, list(sites))
    out = {}
    for host in hosts:
        x, target = seen[host.reads], seen[host.writes]
        codes, applies = host.encode(tokens, x, target)
        out[host.name] = codes.dense().sum(0) / applies.sum().clamp_min(1)
    return out
