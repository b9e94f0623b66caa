"""Tables for people: what an evaluation says, in words."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from saelab.console import cells, shown
from saelab.evaluation.evaluate import Evaluation
from saelab.evaluation.recovery import Recovery
from saelab.training.run import Run
from saelab.types import Figures

Results = list[tuple[Run, Evaluation]]

EXPLANATION = """\
Known features. The text's labels tell what is true of every token. A latent has found a feature
if it fires where the feature holds and nowhere else: F1 1.00. Of each SAE the best single latent is
shown, chosen on other text than it is scored on. AUROC: 0.50 is chance. The probe is a linear
classifier on the activations themselves: what was there to be found. The gap between the two is
what better SAEs have to win."""


def wide_console() -> Console:
    """Standard output, at least 100 columns wide where nobody has set a width."""
    console = Console()
    return console if console.is_terminal else Console(width=max(100, console.width))


def fidelity_table(results: Results) -> Table:
    """One column per run, one row per figure, and what each figure means."""
    table = Table(title="How faithful is it?", title_justify="left", box=None)
    table.add_column("")
    for run, _ in results:
        table.add_column(Text(shown(run.name)), justify="right", style="bold")
    table.add_column("", style="dim")
    columns = [_fidelity(result) for _, result in results]
    for i, (name, _, meaning) in enumerate(columns[0]):
        table.add_row(name, *(column[i][1] for column in columns), meaning)
    return table


def _fidelity(result: Evaluation) -> list[tuple[str, str, str]]:
    r, d = result.reconstruction, result.downstream
    return [
        *reconstruction_lines(r),
        ("dead latents", f"{r['dead']} of {r['d_sae']}", f"silent on {r['n_tokens']} tokens"),
        ("CE, model alone", f"{d['ce_plain']:.4f}", "nats per token of held-out text"),
        ("CE, SAE spliced in", f"{d['ce_spliced']:.4f}", "the model reading the reconstruction"),
        ("CE, zeros spliced in", f"{d['ce_zero']:.4f}", "the site removed"),
        ("CE recovered", f"{d['ce_recovered']:.2%}", "100 % is the model alone, 0 % is zeros"),
        ("KL", f"{d['kl']:.4f}", "nats between the predictions with and without the SAE"),
    ]


def reconstruction_lines(figures: Figures) -> list[tuple[str, str, str]]:
    """FVU as one ratio and row by row, L0, and what was left out: name, value and meaning."""
    r = figures
    rows = f"{r['fvu_row_mean']:.4f}, {r['fvu_row_median']:.4f}"
    seen = f"of {r['left_out'] + r['n_tokens']:.0f} tokens; as in training, they pass unchanged"
    return [
        ("FVU", f"{r['fvu']:.4f}", "variance of the activations that it misses (0 is perfect)"),
        ("FVU, token by token", rows, "mean and median over tokens, each of which counts alike"),
        ("left out", f"{r['left_out']:.0f}", seen),
        ("L0", f"{r['l0']:.2f}", "latents active per token"),
    ]


def features_table(results: Results, ends: int | None = None) -> Table:
    """One row per known feature, best found first; `ends` shows so many of either end only.

    Each run has two columns: F1 of its best latent (with the latent's number) and its AUROC.
    """
    table = Table(box=None)
    table.add_column("known feature")
    table.add_column("tokens", justify="right")
    for run, _ in results:
        heading = Text(f"{shown(run.name)}\nF1 (latent)")
        table.add_column(heading, justify="right", style="bold")
        table.add_column("\nAUROC", justify="right")
    table.add_column("probe\nF1", justify="right")
    table.add_column("\nAUROC", justify="right")
    rows = _by_label(results)
    for i, features in enumerate(rows):
        if ends is None or i < ends or i >= len(rows) - ends:
            table.add_row(*cells(*_cells(features)))
        elif i == ends:
            table.add_row(f"… {len(rows) - 2 * ends} more in the browser", style="dim")
    return table


def _by_label(results: Results) -> list[list[Recovery]]:
    """Per label, its entry of each run; best first by the first run's F1."""
    tables = [
        {feature.label: feature for feature in result.recovery.features}
        for _, result in results
        if result.recovery is not None
    ]
    shared = [label for label in tables[0] if all(label in table for table in tables)]
    shared.sort(key=lambda label: -tables[0][label].f1)
    return [[table[label] for table in tables] for label in shared]


def _cells(features: list[Recovery]) -> list[str]:
    first = features[0]
    found = [first.label, f"{first.frequency:.1%}"]
    for f in features:
        found += [f"{f.f1:.2f} ({'-' if f.sign < 0 else ''}{f.latent})", f"{f.auroc:.2f}"]
    best = max(features, key=lambda f: f.probe_auroc)
    return [*found, f"{best.probe_f1:.2f}", f"{best.probe_auroc:.2f}"]
