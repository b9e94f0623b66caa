"""Tables of `saelab steer`: scores, texts side by side, doses, concepts, success."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from saelab.analysis.steering.concept_steering import ConceptSteering
from saelab.analysis.steering.dose import DoseResponse
from saelab.analysis.steering.generate import Comparison, Continuation
from saelab.analysis.steering.records import HIGH_INPUT, HIGH_OUTPUT, SteeringScores
from saelab.analysis.steering.success import Success
from saelab.cli.tables import wide_console
from saelab.console import cells, shown

N_WORDS = 5


def print_scores(scores: SteeringScores, top: int) -> None:
    """The latents of the highest output scores, and the relation of the two scores."""
    table = Table(title="Latents that steer best", title_justify="left", box=None)
    for name in ("latent", "output", "input"):
        table.add_column(name, justify="right")
    table.add_column("promises")
    table.add_column("fires on")
    for row in scores.best(top):
        record = scores.record(row)
        table.add_row(
            _latent(record["latent"], record["sign"]),
            f"{record['output']:.3f}",
            _optional(record["input"]),
            Text(", ".join(map(shown, record["promises"][:N_WORDS]))),
            Text(", ".join(map(shown, record["fires_on"]))),
        )
    console = wide_console()
    console.print(table)
    figures = scores.summary()
    console.print(
        f"\nPrompt: '{shown(scores.facts['prompt'])}'. Of {figures['n_rows']} rows "
        f"{figures['high_output']} have an output score of {HIGH_OUTPUT} or more; of the "
        f"{figures['n_with_input']} with an input score {figures['high_input']} have "
        f"{HIGH_INPUT} or more, and {figures['high_both']} have both.",
        markup=False,
    )


def print_comparison(found: Comparison) -> None:
    """Plain and steered text side by side, with their perplexity under the plain model."""
    console = wide_console()
    console.print(Text(f"{shown(found.prompt)} ..."), style="bold")
    effect = found.effect
    console.print(
        f"{found.change.op} {list(found.change.latents)}: {effect.n_changed} of {effect.n_rows} "
        f"activations of the prompt changed, by {effect.shift:.0%} of their length on average\n",
        markup=False,
    )
    if effect.n_left_out:
        console.print(
            f"{effect.n_left_out} more were left as they are: their norms are larger than any that "
            "the SAE was trained on\n",
            markup=False,
        )
    for number, pair in enumerate(zip(found.plain, found.steered, strict=True)):
        if len(found.plain) > 1:
            console.print(f"sample {number}", style="dim")
        _print_pair(console, *pair)


def _print_pair(console: Console, plain: Continuation, steered: Continuation) -> None:
    table = Table(box=None)
    for name, style in (("plain", "bold"), ("log p", "dim"), ("steered", "bold")):
        table.add_column(name, style=style, justify="right" if name == "log p" else "left")
    for name in ("log p", "log p, plain model", "KL"):
        table.add_column(name, style="dim", justify="right")
    for left, right in zip(plain.tokens, steered.tokens, strict=True):
        table.add_row(
            *cells(left.text, f"{left.log_prob:.2f}", right.text),
            *(f"{right.log_prob:.2f}", f"{right.plain_log_prob:.2f}", f"{right.kl:.2f}"),
        )
    console.print(table)
    for name, continuation in (("plain", plain), ("steered", steered)):
        figures = f"perplexity under the plain model {continuation.perplexity:.3g}, repeated "
        figures += f"bigrams {continuation.repetition:.0%}"
        console.print(Text(f"{name}: {shown(continuation.text)}  ({figures})"))


def print_dose(dose: DoseResponse) -> None:
    """One row per strength."""
    console = wide_console()
    console.print(Text(f"{shown(dose.prompt)} ..."), style="bold")
    table = Table(box=None)
    table.add_column(f"strength\n({dose.change.unit})", justify="right", style="bold")
    for name in (
        f"log p\n({shown(dose.target)})",
        "KL\n(nats)",
        "repeated\nbigrams",
        "\nperplexity",
    ):
        table.add_column(Text(name), justify="right")
    table.add_column("\ntext")
    for row, strength in enumerate(dose.strengths):
        table.add_row(
            f"{strength:g}",
            f"{dose.target_log_prob[row]:.2f}",
            f"{dose.kl[row]:.3f}",
            f"{dose.repetition[row]:.0%}",
            f"{dose.perplexity[row]:.3g}",
            *cells(dose.gap.join(dose.texts[row][:8])),
        )
    console.print(table)


def print_concepts(result: ConceptSteering) -> None:
    """One row per concept, one column per method: probability gained at the same KL."""
    methods = list(result.mean_gain())
    table = Table(
        title="Probability that steering moves to the concept's tokens, at the same KL",
        title_justify="left",
        box=None,
    )
    table.add_column("concept")
    for method in methods:
        table.add_column(method.replace("latent: ", "latent:\n"), justify="right")
    table.add_column("ideal", justify="right", style="dim")
    by_place = {(row.concept, row.method): row for row in result.rows}
    for concept, ideal in result.ideal.items():
        gains = []
        for method in methods:
            row = by_place.get((concept, method))
            which = "" if row is None or row.latent is None else _latent(row.latent, row.sign)
            gain = "none" if row is None else f"{row.steered.gain:.2f}"
            gains.append(f"{gain} ({which})" if which else gain)
        table.add_row(*cells(concept), *gains, f"{ideal:.2f}")
    means = [f"{gain:.2f}" for gain, _ in result.mean_gain().values()]
    ideal = sum(result.ideal.values()) / len(result.ideal)
    table.add_row("mean", *means, f"{ideal:.2f}", style="bold")
    wide_console().print(table)


def print_success(result: Success) -> None:
    """For each filter: what it keeps, how well that steers, and how much noise passes."""
    table = Table(title="Steering success, by filter", title_justify="left", box=None)
    columns = ("filter", "n", "success", "factor", "as many", "gain", "factor", "random")
    for name in columns:
        table.add_column(name, justify="left" if name == "filter" else "right")
    for row in result.filters:
        best = "" if row.share is None else f" (best {row.share:.0%})"
        score = "random directions, output" if row.score == "random" else row.score
        kept = f"{score} ≥ {row.threshold or 0:.3g}{best}"
        if row.threshold is None:
            kept = "random directions" if row.score == "random" else "none"
        table.add_row(
            *(kept, str(row.n), f"{row.success:.2f}", _interval(row.ratio, row.low, row.high)),
            f"[{row.equal_low:.2f}, {row.equal_high:.2f}]",
            *(f"{row.gain:+.2f}", _interval(row.gain_ratio, row.gain_low, row.gain_high)),
            "" if row.chance is None else f"{row.chance:.0%}",
        )
    console = wide_console()
    console.print(table)
    console.print(
        "Success: promised tokens a text (GenSucc, arXiv 2505.20063, Eq. 7) at each latent's best "
        "strength; gain: beyond what the plain model says of them; factor: to that of all latents, "
        "with its 95 % interval (bootstrap over latents); as many: the factors that as many random "
        "latents have in 95 % of the cases; random: random directions that pass. The last lines "
        "steer with random directions instead of latents, with the same protocol.",
        style="dim",
    )


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _latent(latent: int, sign: int) -> str:
    return f"-{latent}" if sign < 0 else str(latent)


def _optional(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
