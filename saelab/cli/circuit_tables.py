"""What `saelab circuit` prints: where no SAE is applied, why heads looked where, and scores."""

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from saelab.console import cells

if TYPE_CHECKING:
    from collections.abc import Sequence

    from saelab.analysis.attention.loadings import HeadLoading
    from saelab.analysis.circuits.ablation import Faithfulness
    from saelab.analysis.circuits.explain import Circuit
    from saelab.analysis.circuits.live import GradientCircuit
    from saelab.analysis.circuits.own import Thinned

N_PAIRS = 3


def attention_table(found: "Circuit") -> Table:
    """The attention weights that carry most of the target, each with its score's largest pairs."""
    title = "What attention carries, over all paths, and the pairs behind each score"
    table = Table(title=title, title_justify="left", box=None)
    for name, right in (
        ("head", False),
        ("looks from", False),
        ("to", False),
        ("attention", True),
        ("gives", True),
        ("score", True),
        ("query x key", False),
        ("part", True),
    ):
        table.add_column(name, justify="right" if right else "left")
    for loading in found.loadings:
        for row in _rows(loading, found.graph.tokens):
            table.add_row(*cells(*row))
    return table


def interventions_table(found: "Circuit") -> Table:
    """Single latents taken away: the change of the target as predicted, and in the live model."""
    title = "Taken away one by one, what changes"
    table = Table(title=title, title_justify="left", box=None)
    for name, right in (("latent", False), ("token", False), ("predicted", True), ("live", True)):
        table.add_column(name, justify="right" if right else "left")
    for one in found.interventions:
        label, token = f"{one.name} {one.latent} @{one.position}", found.graph.tokens[one.position]
        table.add_row(*cells(label, token, f"{one.predicted:+.3f}", f"{one.live:+.3f}"))
    return table


def _rows(loading: "HeadLoading", tokens: tuple[str, ...]) -> list[tuple[str, ...]]:
    pairs = loading.pairs
    ends = [f"{tokens[place]} @{place}" for place in (pairs.dest, pairs.source)]
    score = f"{pairs.score:+.2f}"
    first = (
        f"{pairs.layer}.{pairs.head}",
        *ends,
        f"{pairs.pattern:.2f}",
        f"{loading.gives:+.3f}",
        score,
    )
    shown = [(f"{q.label()} x {k.label()}", part) for q, k, part in pairs.top(N_PAIRS)]
    others = pairs.score - sum(part for _, part in shown)
    shown.append((f"{pairs.products.numel() - len(shown)} other pairs", others))
    return [
        (*(first if number == 0 else ("",) * len(first)), what, f"{part:+.2f}")
        for number, (what, part) in enumerate(shown)
    ]


def outside_table(found: "Circuit") -> "Table | None":
    """Where SAEs are not applied, and the effects from there."""
    from saelab.analysis.circuits.explain import left_out_inputs

    places, n_saes = left_out_inputs(found.graph), len(found.graph.facts["saes"])
    if not places:
        return None
    title = "Where training left tokens out, all is error"
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("token", min_width=12)
    table.add_column("position", justify="right")
    table.add_column("not applied")
    table.add_column("gives", justify="right")
    for place, saes, given in places:
        which = "none of the SAEs" if len(saes) == n_saes > 1 else ", ".join(saes)
        token = Text(found.graph.tokens[place])
        table.add_row(token, str(place), Text(which), f"{given:+.3f}")
    return table


def summary(found: "Circuit", *, n_members: int) -> str:
    """The size of a circuit, its scores, and what the live model says of it.

    `n_members` is how many latents were to be judged by gradients.
    """
    counts, scores = found.pruned.counts, found.scores
    lines = [
        f"\nGraph: {counts['latents']} of {counts['active_latents']} active latents "
        f"({counts['influence_left_out']:.1%} of the influence left out), {counts['edges']} edges; "
        f"pruned to {len(found.pruned.nodes)} nodes and {len(found.pruned.weight)} edges "
        f"({counts['pruned_influence']:.1%} of the influence dropped).",
        f"Of the leaves' influence: tokens {scores.replacement:.1%}, SAE errors "
        f"{scores.error_influence:.1%}, MLPs {scores.mlp_influence:.1%}; completeness score "
        f"{scores.completeness:.2f}.",
        f"Live model, the graph's latents: {_judged(found, found)}",
    ]
    lines += _curve(found.curve, found.caveat)
    if (few := found.thinned) is not None:
        judged = _judged(found, few)
        lines.append(f"Live model, the graph's latents thinned, those by chance likewise: {judged}")
    if not found.faithfulness.n_members:
        lines.append("  Pruning left no latent: raise --node-threshold or --max-nodes.")
    if (other := found.by_gradients) is not None:
        judged = _judged(found, other)
        lines.append(f"Live model, the latents that support it most: {judged}")
        lines += _gradients(other, found.caveat)
    elif n_members:
        latent = "latent" in found.graph.facts
        why = "this is known for tokens only" if latent else "none does"
        lines.append(f"Live model, the latents that support it most by gradients: {why}.")
    return "\n".join(lines)


def _gradients(found: "GradientCircuit", caveat: str) -> list[str]:
    """How reliable the gradients are, and circuits of other sizes."""
    gap = max(found.gaps.values())
    lines = [f"  Integrated gradients sum to what the latents do, but for {gap:.1%} at most."]
    if found.agreement is not None:
        lines.append(
            f"  What they give and the graph's attributions correlate by {found.agreement:.2f}."
        )
    return lines + _curve(found.curve, caveat)


def _curve(curve: "Sequence[Faithfulness]", caveat: str) -> list[str]:
    return [f"{judged.n_members:6d} of them: {_ratios(judged, caveat)}" for judged in curve]


def _ratios(judged: "Faithfulness", caveat: str) -> str:
    """Faithfulness and completeness, or the target's values where ratios mean nothing."""
    if judged.caveat or caveat:
        return f"{judged.circuit:.2f} alone, {judged.complement:.2f} without them"
    return f"faithfulness {judged.faithfulness:.2f}, completeness {judged.completeness:.2f}"


def _judged(circuit: "Circuit", found: "Circuit | GradientCircuit | Thinned") -> str:
    """What some of a circuit's latents do, beside random ones, or why that is not known."""
    from saelab.analysis.circuits.explain import chance_values

    judged, caveat = found.faithfulness, found.faithfulness.caveat or circuit.caveat
    if not judged.n_members:
        return caveat
    text = (
        f"{judged.n_members} kept give {judged.circuit:.2f} of {judged.whole:.2f} (without any "
        f"latent {judged.empty:.2f})"
    )
    if caveat:
        return f"{text}; without them {judged.complement:.2f}. {caveat}"
    text += (
        f", faithfulness {judged.faithfulness:.2f}; without them {judged.complement:.2f}, "
        f"completeness {judged.completeness:.2f}."
    )
    if chance := chance_values(found.by_chance).get("by_chance"):
        text += (
            f" As many by chance: {chance['faithfulness']:.2f} ± {chance['spread']:.2f}, "
            f"{chance['completeness']:.2f} ({chance['n_draws']} draws)."
        )
    return text
