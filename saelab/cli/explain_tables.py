"""Tables of `saelab explain`: scores of explanations, and the calibration of a judge."""

from rich.table import Table

from saelab.analysis.explain.calibrate import ACCEPTED, Calibration
from saelab.analysis.explain.scores import OWN, ExplanationScores
from saelab.cli.tables import wide_console


def print_scores(scores: ExplanationScores) -> None:
    """Mean scores over latents, beside those of the controls."""
    table = Table(title=f"Scores by {scores.judge}", title_justify="left", box=None)
    table.add_column("explanation")
    found = scores.summary()
    names = list(dict.fromkeys(name for each in found.values() for name in each))
    for name in ("latents", *names):
        table.add_column(name, justify="right")
    titles = {OWN: "its own", "empty": "none", "random": "another latent's", "tokens": "by tokens"}
    for source, each in found.items():
        n = len(scores.by_source[source])
        table.add_row(titles[source], str(n), *(_interval(each.get(name)) for name in names))
    console = wide_console()
    console.print(table)
    console.print(
        "\nBalanced accuracy (0.5 by chance) on examples that the explainer did not see; brackets: "
        "95 % bootstrap intervals over latents. What is not above another latent's says nothing.",
        soft_wrap=True,
    )
    if scores.n_unread:
        console.print(f"{scores.n_unread} answers were neither yes nor no.")


def print_calibration(found: Calibration) -> None:
    """What the judge makes of each kind of description."""
    table = Table(title=f"Calibration of {found.judge}", title_justify="left", box=None)
    table.add_column("description")
    for name in ("features", "score", "AUC", f"accepted (>= {ACCEPTED})", "best possible"):
        table.add_column(name, justify="right")
    for kind, scores in found.scores.items():
        one = found.summary()[kind]
        table.add_row(
            kind,
            str(len(scores)),
            _interval(one["score"]),
            _interval(one["auc"]),
            f"{100 * found.accepted(kind):.0f} %",
            _interval(one["ideal"]),
        )
    console = wide_console()
    console.print(table)
    console.print(
        "\nA judge whose scores can be believed accepts true descriptions, and few others. Best "
        "possible: who knows where each description is true.",
        soft_wrap=True,
    )
    if found.n_unread:
        console.print(f"{found.n_unread} answers are missing, or neither yes nor no.")


def _interval(found: object) -> str:
    if not isinstance(found, tuple):
        return "-"
    mean, low, high = found
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"
