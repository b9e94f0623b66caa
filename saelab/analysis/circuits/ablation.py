"""Whether a circuit does what its graph says: latents ablated in the live model.

A graph is computed with attention and norms frozen, and a graph that explains all of a logit may
still be unable to make the model say it. So a set of latents is judged by running the model: all
other latents are set to zero (or to their means) at every SAE's site, where the SAE reads what the
changed model computes, and everything else (errors, attention, MLPs) runs as it does. The two
ratios are those of arXiv 2403.19647.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.analysis.circuits.frozen import Frozen
from saelab.config import UsageError
from saelab.host.host import Host
from saelab.kernels import sparse_decode
from saelab.lm.protocol import Edit, LanguageModel
from saelab.types import SparseCodes

Metric = Callable[[Float[Tensor, "batch pos d_vocab"]], Float[Tensor, ""]]
"""From logits to the number that a circuit is about."""
LITTLE = 0.05
"""Where all latents together change the metric by less than this share of it, ratios of such
changes mean little."""
Members = dict[str, Bool[Tensor, "#pos d_sae"]]
"""By SAE name, which latents are in the circuit: at each position, or at all of them."""


@dataclass(frozen=True)
class LatentMetric:
    """A latent's value, read in the live model: what a local circuit is about.

    Attributes:
        host: the latent's.
        weights: what the latent reads of each position at the SAE's site.
        constant: what is added.
    """

    host: Host
    weights: Float[Tensor, "pos d_in"]
    constant: float

    def value(
        self, lm: LanguageModel, tokens: Int[Tensor, "batch pos"], edits: Mapping[str, Edit]
    ) -> float:
        """Its mean over the contexts, with the model edited upstream."""
        site = self.host.reads
        x = lm.run(tokens, edits=edits, hooks=[site]).activations[site]
        return float((x.to(self.weights.dtype) * self.weights).sum((1, 2)).mean()) + self.constant


@dataclass(frozen=True)
class Faithfulness:
    """The metric in the live model under four sets of latents, and two ratios.

    Attributes:
        whole: with all latents.
        circuit: with those of the circuit.
        complement: with all others.
        empty: with none.
        n_members: latents in the circuit, counted at each position.
    """

    whole: float
    circuit: float
    complement: float
    empty: float
    n_members: int

    @property
    def faithfulness(self) -> float:
        """(circuit - empty) / (whole - empty): 1 where the circuit is enough."""
        return (self.circuit - self.empty) / (self.whole - self.empty)

    @property
    def completeness(self) -> float:
        """(complement - empty) / (whole - empty): 0 where nothing outside will do."""
        return (self.complement - self.empty) / (self.whole - self.empty)

    @property
    def caveat(self) -> str:
        """Why the ratios say nothing or little, as a sentence; empty where they do."""
        change = self.whole - self.empty
        if not self.n_members:
            return "No latent is in the circuit, so nothing was judged."
        if not change:
            return "Without all latents the model says the same, so there are no ratios."
        if abs(change) < LITTLE * max(abs(self.whole), abs(self.empty)):
            return (
                f"All latents together change it by {change:+.3g} only, so the ratios mean little."
            )
        return ""

    def values(self) -> dict[str, float | int | str | None]:
        """Everything as plain values; ratios are None where nothing was or can be judged."""
        defined = self.whole != self.empty and self.n_members > 0
        return {
            "whole": self.whole,
            "circuit": self.circuit,
            "complement": self.complement,
            "empty": self.empty,
            "faithfulness": self.faithfulness if defined else None,
            "completeness": self.completeness if defined else None,
            "n_members": self.n_members,
            "caveat": self.caveat,
        }


@torch.no_grad()
def faithfulness(
    lm: LanguageModel,
    hosts: Sequence[Host],
    tokens: Int[Tensor, "batch pos"],
    members: Members,
    metric: Metric | LatentMetric,
    means: Mapping[str, Float[Tensor, " d_sae"]] | None = None,
) -> Faithfulness:
    """How far a circuit alone keeps the metric, and how far it can be done without.

    Args:
        lm: the model.
        hosts: its SAEs.
        tokens: prompts of one length.
        members: the circuit; an SAE that is not named has no members.
        metric: of the logits, or a latent's value; then only SAEs before it are ablated.
        means: by SAE name, what ablated latents are set to; default: zero.

    Raises:
        UsageError: `members` names an SAE that is not there.
    """
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
    """The metric with no latents but `members`; arguments and errors as for `faithfulness`."""
    if unknown := set(members) - {d.name for d in hosts}:
        raise UsageError(
            f"The circuit has latents of {', '.join(sorted(unknown))}, which is not among the SAEs."
        )
    if isinstance(metric, LatentMetric):
        depth = metric.host.place.depth
        hosts = [d for d in hosts if d.place.depth < depth]
    nothing = {d.name: d.sae.W_dec.new_zeros(1, d.sae.d_sae, dtype=torch.bool) for d in hosts}
    edits = ablation_edits(hosts, tokens, nothing | members, means)
    if isinstance(metric, LatentMetric):
        return metric.value(lm, tokens, edits)
    return float(metric(lm.logits(tokens, edits)))


def ablation_edits(
    hosts: Sequence[Host],
    tokens: Int[Tensor, "batch pos"],
    keep: Members,
    means: Mapping[str, Float[Tensor, " d_sae"]] | None = None,
    factor: float | int = 0.0,
) -> dict[str, Edit]:
    """Edits under which only the latents in `keep` act; errors stay what they are.

    A site whose every latent is kept keeps its bits, as does a position where its SAE is not
    applied.

    Args:
        hosts: the SAEs.
        tokens: what the edited model reads.
        keep: latents that stay as they are.
        means: by SAE name, what the others are set to; default: zero.
        factor: how much of the others is left of what they are beyond that; 2 doubles it.
    """
    edits: dict[str, Edit] = {}
    for host in hosts:
        mean = None if means is None else means[host.name]
        inputs: list[Tensor] = []
        change = _ablation(host, tokens, (keep[host.name], 1.0 - factor), mean, inputs)
        if host.is_transcoder:
            # A transcoder's output is changed by what was seen at its input in the same pass.
            edits[host.reads] = _seen(inputs)
        edits[host.writes] = change
    return edits


def _seen(inputs: list[Tensor]) -> Edit:
    def edit(value: Tensor) -> Tensor:
        inputs[:] = [value]
        return value

    return edit


def _ablation(
    host: Host,
    tokens: Int[Tensor, "batch pos"],
    kept: tuple[Bool[Tensor, "#pos d_sae"], float],
    mean: Float[Tensor, " d_sae"] | None,
    inputs: list[Tensor],
) -> Edit:
    sae = host.sae
    keep, share_lost = kept

    def edit(value: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch pos d"]:
        x = inputs[0] if inputs else value
        mask = keep.expand(value.shape[1], -1).repeat(len(value), 1)
        codes, applies = host.encode(tokens, x, value)
        gone = ~mask[codes.rows(), codes.indices]
        away = SparseCodes(codes.values * gone, codes.indices, codes.d_sae, codes.offsets)
        change = -sparse_decode(away, sae.W_dec)
        if mean is not None:
            change = change + (~mask * mean * applies.flatten()[:, None]) @ sae.W_dec
        return value + (share_lost * change).view(value.shape).to(value.dtype)

    return edit


def members_at(
    frozen: Frozen, chosen: Bool[Tensor, " latent"], sizes: Mapping[str, int]
) -> Members:
    """Active latents of a prompt as members, each at its own position.

    Args:
        frozen: the prompt.
        chosen: which of its active latents.
        sizes: d_sae by SAE name.
    """
    members: Members = {}
    for number, active in enumerate(frozen.actives):
        mine = chosen[frozen.spans[number]]
        mask = torch.zeros(frozen.n_pos, sizes[active.name], dtype=torch.bool, device=chosen.device)
        mask[active.codes.row[mine], active.codes.latent[mine]] = True
        members[active.name] = mask
    return members


def everywhere(members: Members) -> Members:
    """The same latents at every position, whatever the prompt's length."""
    return {name: mask.any(0, keepdim=True) for name, mask in members.items()}


@torch.no_grad()
def mean_codes(
    lm: LanguageModel, hosts: Sequence[Host], tokens: Int[Tensor, "batch pos"]
) -> dict[str, Float[Tensor, " d_sae"]]:
    """Each latent's mean activation over reference contexts, by SAE name.

    Over the tokens where its SAE is applied.
    """
    sites = {site for d in hosts for site in d.sites}
    seen = lm.capture(tokens, list(sites))
    out = {}
    for host in hosts:
        x, target = seen[host.reads], seen[host.writes]
        codes, applies = host.encode(tokens, x, target)
        out[host.name] = codes.dense().sum(0) / applies.sum().clamp_min(1)
    return out
