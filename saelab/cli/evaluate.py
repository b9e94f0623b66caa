"""`saelab evaluate`: measure a trained SAE on held-out text."""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from saelab.cli.options import Positional
from saelab.cli.parse import parse
from saelab.config import Heading, UsageError
from saelab.evaluation.options import EvaluateOptions

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from saelab.evaluation.absorption_tasks import Absorption
    from saelab.evaluation.probing import SparseProbing
    from saelab.evaluation.results import Evaluation
    from saelab.training.run import Run

Line = tuple[str, str, str]
"""What is measured, its value, and what the value means."""


class EvaluateArguments(EvaluateOptions):
    """Measure a trained SAE on text that no training saw.

    How faithful it is (FVU, L0, what splicing the reconstruction into the model costs), how its
    latents are used and how many bits they take, what they do to the model's predictions, and,
    where the text has ground-truth labels, how well latents find them: single ones, sparse probes
    of a few, and how often special latents absorb a general one. Writes evaluation/*.json in the
    run. What cannot be measured is named with the reason.

        saelab evaluate runs/topk
        saelab evaluate runs/topk --suite core --text my_text.jsonl --labels topic
    """

    run: Annotated[Path, Positional("RUN")]
    """The run's directory."""
    suite: Annotated[Literal["core", "full"], Heading("Measurements")] = "full"
    """core: reconstruction, downstream cost, known features, density and dictionary. full: also
    recovery against mean ablation, description length, uniformity, sparse probing, absorption and
    ablation sparsity, which take about as long again."""
    text: Annotated[str | None, Heading("Another text")] = None
    """Another text to measure on, as for saelab harvest; all of it counts as held out, unless it is
    the one the run was trained on. Default: what was held out of that one."""
    text_field: str = "text"
    """With --text: which field of its rows is the text."""
    labels: tuple[str, ...] = ()
    """With --text: fields of its rows that are labels, or a JSONL file of labels; default: the
    rows' own labels and spans; none: no labels."""
    roles: tuple[str, ...] = ()
    """With --text, of conversations: whose tokens count, e.g. assistant; default: all."""
    model: Annotated[str | None, Heading("Machine")] = None
    """The language model; default: the one the run was trained on."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes the GPU where there is one."""
    json_: Annotated[bool, Heading("Output")] = False
    """Print JSON instead of tables."""


def main(arguments: list[str]) -> int:
    """Parse and run."""
    args = parse(EvaluateArguments, "evaluate", arguments)
    # Imported here, so that --help does not wait for torch.
    from saelab.evaluation.evaluate import evaluate
    from saelab.evaluation.other_text import TextOptions, other_text, saved_as
    from saelab.lm.load import load_recorded_model
    from saelab.lock import writing
    from saelab.training.run import Run

    run, text = Run(args.run), None
    with writing(run.path):
        options = EvaluateOptions(**args.model_dump(include=set(EvaluateOptions.model_fields)))
        if args.text is None and (args.labels or args.roles):
            raise UsageError("--labels and --roles belong to the text that --text names; name one.")
        if run.on_arrays:
            given = [f"--{name}" for name in ("text", "model") if getattr(args, name) is not None]
            if given:
                raise UsageError(f"{run.path} was trained on arrays; leave out {given[0]}.")
            result = evaluate(run, options=options, device=args.device)
        else:
            lm = load_recorded_model(run.model(), name=args.model, device=args.device)
            corpus = None
            if args.text is not None:
                reading = TextOptions(args.text_field, args.labels, args.roles)
                corpus = other_text(run, lm, args.text, options=reading, n_tokens=args.n_tokens)
                text = saved_as(run, corpus)
            result = evaluate(run, lm, options, corpus=corpus)
    if args.json_:
        print(json.dumps(asdict(result), indent=2))
        return 0
    print_evaluation(run, result)
    print(run.path / "evaluation" / (text or ""))
    return 0


def print_evaluation(run: "Run", result: "Evaluation") -> None:
    """Every group of figures with what each means, the known features, and what is missing."""
    from saelab.cli.tables import EXPLANATION, features_table, wide_console
    from saelab.evaluation.reconstruction import fvu_warning

    console = wide_console()
    console.print(_fidelity(run, result))
    if warning := fvu_warning(result.reconstruction):
        console.print(f"\n{warning}", style="yellow", soft_wrap=True)
    for title, lines in (
        ("How are the latents used?", _use(result)),
        ("How short is the description?", _length(result)),
        ("What do the latents do to the predictions?", _effects(result)),
    ):
        _print_lines(console, title, list(lines))
    if result.probing is not None:
        console.print(_probing_table(result.probing))
    if result.absorption is not None and result.absorption.tasks:
        console.print(_absorption_table(result.absorption))
    if result.recovery is not None and result.recovery.features:
        console.print(f"\n{EXPLANATION}\n")
        console.print(features_table([(run, result)]))
    _print_lines(console, "Not measured", list(_missing(result)))
    spent = ", ".join(f"{name.replace('_', ' ')} {s:.1f}" for name, s in result.seconds.items())
    console.print(f"\nSeconds: {spent}.", style="dim")


def _print_lines(console: "Console", title: str, lines: list[Line]) -> None:
    from saelab.console import cells

    if not lines:
        return
    table = _table(title)
    table.add_column("")
    table.add_column("", justify="right", style="bold")
    table.add_column("", style="dim")
    for line in lines:
        table.add_row(*cells(*line))
    console.print(table)


def _table(title: str) -> "Table":
    from rich.table import Table

    return Table(title=f"\n{title}", title_justify="left", box=None)


def _fidelity(run: "Run", result: "Evaluation") -> "Table":
    """`tables.fidelity_table` with the mean ablation's line, or what there is without a splice."""
    from rich.text import Text

    from saelab.cli.tables import fidelity_table, reconstruction_lines
    from saelab.console import shown

    d = result.downstream
    if d:
        table = fidelity_table([(run, result)])
        if "ce_mean" in d:
            table.add_row(
                "CE recovered, mean",
                f"{d['ce_recovered_mean']:.2%}",
                f"0 % is the mean at every token (CE {d['ce_mean']:.4f})",
            )
        return table
    table = _table("How faithful is it?")
    table.add_column("")
    table.add_column(Text(shown(run.name)), justify="right", style="bold")
    table.add_column("", style="dim")
    for line in reconstruction_lines(result.reconstruction):
        table.add_row(*line)
    return table


def _use(result: "Evaluation") -> Iterator[Line]:
    d, w = result.density, result.dictionary
    low, _, middle, _, high = d.l0_quantiles
    yield "L0", f"{middle:g}", f"median over tokens; 90 % of them between {low:g} and {high:g}"
    yield "dead", f"{d.dead:.2%}", f"latents silent on {d.n_tokens} tokens"
    yield "dense", f"{d.dense:.2%}", "latents that fire on more than 10 % of the tokens"
    if w.signed:
        both = sum(0 < share < 1 for share in d.negative)
        yield "both signs", f"{both} of {len(d.negative)}", "latents that fire with either sign"
    norms = f"{w.norm_min:.3g} to {w.norm_max:.3g}"
    yield "decoder norms", norms, f"{w.not_unit} latents further than 0.001 from 1"
    closeness = "|cosine|" if w.signed else "cosine"
    pairs = f"pairs of decoder rows with a {closeness} above {w.limit}"
    yield "duplicates", str(w.duplicates), f"{pairs}, {w.in_duplicates} latents"
    if not w.signed:
        yield "opposites", str(w.opposites), f"pairs with a cosine below -{w.limit}"
    yield "nearest", f"{w.nearest_mean:.3f}", f"mean over latents of the largest {closeness}"
    if w.encoder_mean is not None:
        rest = f"lowest {w.encoder_min:.3f}, {w.encoder_collinear} above {w.limit}"
        yield "encoder and decoder", f"{w.encoder_mean:.3f}", f"mean cosine of a latent's; {rest}"


def _length(result: "Evaluation") -> Iterator[Line]:
    d = result.description_length
    if d is None:
        return
    for level in d.curve:
        meaning = f"bits per token with {level.n_bins} values a sign, at an FVU of {level.fvu:.4f}"
        yield "", f"{level.bits:.1f}", meaning
    if d.chosen is None:
        yield "chosen", "none", f"no grid keeps the FVU within {d.tolerance:g} of {d.fvu:.4f}"
        return
    yield "chosen", f"{d.chosen.bits:.1f}", f"the first within {d.tolerance:g} of FVU {d.fvu:.4f}"
    dense = "more" if d.dense_bits is None else f"{d.dense_bits:.1f}"
    yield "activations", dense, "bits of the channels themselves, rounded to the same FVU"
    yield "bias", f"{d.bias_bits:.2f}", f"bits that {d.n_tokens} tokens are too few to show"


def _effects(result: "Evaluation") -> Iterator[Line]:
    if (u := result.uniformity) is not None:
        meaning = f"effective share of active latents that matter, {u.n_tokens} tokens"
        yield "uniformity", f"{u.r:.3f}", f"{meaning}; 1 is all alike"
        yield "that matter", f"{u.effective:.2f}", f"effective number of latents, of {u.l0:.2f}"
    if (a := result.ablation) is not None:
        kinds = [("latents", a.latents)] + ([("channels", a.channels)] if a.channels else [])
        for name, found in kinds:
            meaning = f"share of the next {a.reach} tokens' logits that ablating one changes"
            what = f"ablation, {name}"
            yield what, f"{found.mean:.3f}", f"{meaning}; {found.n} ablated, lower is sparser"


def _probing_table(probing: "SparseProbing") -> "Table":
    """Mean scores over labels."""
    table = _table("How much do a few latents tell?")
    table.add_column(f"mean over {len(probing.labels)}\nknown features")
    for name in ("latents\nF1", "\nAUROC", "channels\nF1", "\nAUROC"):
        table.add_column(name, justify="right", style="bold" if "F1" in name else None)
    f1, auroc = probing.mean_f1, probing.mean_auroc
    for i, k in enumerate(probing.ks):
        cells = (
            f"{means[kind][i]:.3f}" for kind in ("latents", "channels") for means in (f1, auroc)
        )
        table.add_row(f"the best {k}" if k > 1 else "the best one", *cells)
    table.add_row("all", "", "", f"{f1['dense'][0]:.3f}", f"{auroc['dense'][0]:.3f}")
    return table


def _absorption_table(absorption: "Absorption") -> "Table":
    """One row a label: its own latents, its probes, and where others speak for these latents."""
    from saelab.console import cells

    table = _table("Do special latents absorb general ones? (0 % is best)")
    table.add_column("label")
    table.add_column("own latents\nF1", justify="right")
    table.add_column("absorbed\nin part", justify="right", style="bold")
    table.add_column("\nfully", justify="right", style="bold")
    table.add_column("\ntokens", justify="right")
    table.add_column("most absorbed", style="dim")
    table.add_column("worst probe\nF1", justify="right", style="dim")
    for task in absorption.tasks:
        name, worst = max(task.parts.items(), key=lambda part: part[1].rate.fraction)
        table.add_row(
            *cells(task.name if task.kind == "hierarchy" else f"{task.kind} {task.name}"),
            f"{task.main_f1:.2f} ({len(task.main)})",
            f"{task.rate.fraction:.1%}",
            f"{task.rate.full:.1%}",
            str(task.rate.n_rows),
            *cells(f"{name} {worst.rate.fraction:.0%}" if name else ""),
            f"{min(part.probe_f1 for part in task.parts.values()):.2f}",
        )
    for kind, means in absorption.means.items():
        what = f"mean of {means.n_tasks} ({kind})"
        table.add_row(what, "", f"{means.fraction:.1%}", f"{means.full:.1%}", "", "", "")
    return table


def _missing(result: "Evaluation") -> Iterator[Line]:
    from saelab.evaluation.recovery import MIN_POSITIVES

    for name, reason in result.skipped.items():
        yield name.replace("_", " "), "", reason
    if result.recovery is not None and (rare := result.recovery.too_rare):
        named = ", ".join(rare[:8]) + (f" and {len(rare) - 8} more" if len(rare) > 8 else "")
        yield (
            "recovery",
            "",
            f"A half of the text has fewer than {MIN_POSITIVES} tokens with them, or without: "
            f"{named}",
        )
    left_out = result.absorption.left_out if result.absorption else {}
    alike: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        alike.setdefault(re.sub(r" of \d\.\d\d", "", reason), []).append(name)
    for reason, names in alike.items():
        parts = [name.partition(": ") for name in names]
        kinds = {kind: [m for k, _, m in parts if k == kind and m] for kind, _, _ in parts}
        for kind, members in kinds.items():
            yield f"absorption, {kind}", "", " ".join([reason, ", ".join(members)]).strip()
