"""`saelab explain --axbench`: steering judged."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from saelab.analysis.explain.axbench import (
    CRITERIA,
    JudgedSteering,
    judged_steering,
)
from saelab.analysis.explain.axbench_concepts import (
    SteeringConcept,
    concepts_of,
    read_concepts,
    read_instructions,
)
from saelab.analysis.explain.explain import chosen, features_of
from saelab.analysis.explain.records import DIRECTORY, name_of, read_set, set_path
from saelab.cli.explain_asking import ExplainArguments
from saelab.cli.explain_scores import answers_of, continued, exported, shown_judge
from saelab.cli.tables import wide_console
from saelab.clients.ledger import Ledger
from saelab.config import UsageError

if TYPE_CHECKING:
    from saelab.training.run import Run


def judge_steering(args: ExplainArguments, run: "Run") -> int:
    """Write steered answers, have them judged, and print the table; 1 if some are not yet."""
    if any(factor <= 0 for factor in args.factors) or not args.factors:
        raise UsageError("--factors are strengths above 0; give at least one.")
    concepts = _concepts(args, run)
    instructions = read_instructions(args.instructions)
    from saelab.analysis.explain.axbench_texts import PLACE, AnswerOptions, written_task
    from saelab.lm.load import load_recorded_model
    from saelab.sae.decoder import check_decoder

    check_decoder(run.config.sae)
    lm = load_recorded_model(run.model(), name=args.model, device=args.device)
    options = AnswerOptions(args.factors, args.answer_tokens)
    task = written_task(run, lm, concepts, instructions, options)
    judge = str(args.judge)
    questions = list(task.questions().values())
    if args.export_prompts is not None:
        return exported(args.export_prompts, questions, judge)
    ledger = Ledger(run.path / DIRECTORY / PLACE / f"judged_{name_of(judge)}.jsonl")
    why = answers_of(args, questions, judge, ledger)
    if n_left := sum(question.key not in ledger.answers for question in questions):
        return continued(n_left, why)
    found = judged_steering(shown_judge(judge), task, ledger)
    cost = {"requests": ledger.requests, "tokens": ledger.tokens}
    path = run.save_evaluation(
        f"axbench_{name_of(judge).replace('.', '-')}",
        {**found.values(), "cost": cost, "concepts": task.concepts, "latents": task.latents},
    )
    _print(found)
    print(path)
    return 0


def _concepts(args: ExplainArguments, run: "Run") -> list[SteeringConcept]:
    source = str(args.axbench)
    if source.endswith(".jsonl"):
        if args.latents:
            raise UsageError("A file names its own latents; leave --latents out.")
        return read_concepts(Path(source))[: args.first]
    features = features_of(run)
    texts = read_set(set_path(run.path, source))
    latents = [n for n in chosen(features, args.latents, None) if n in texts.by_latent]
    found = list(concepts_of(features, texts, latents[: args.first]))
    if not found:
        raise UsageError(f"{texts.path} explains none of these latents with texts of both kinds.")
    return found


def _print(found: JudgedSteering) -> None:
    table = Table(title=f"Steering judged by {found.judge}", title_justify="left", box=None)
    table.add_column("method")
    for name in ("concepts", "score", *CRITERIA, "factors"):
        table.add_column(name, justify="right")
    summary = found.summary()
    for method in sorted(summary, key=lambda m: -summary[m]["score"][0]):
        columns = summary[method]
        used = sorted(set(found.factors[method]))
        mean, low, high = columns["score"]
        table.add_row(
            method,
            str(len(found.by_method[method]["score"])),
            f"{mean:.2f} [{low:.2f}, {high:.2f}]",
            *(f"{columns[name][0]:.2f}" for name in CRITERIA),
            ", ".join(f"{factor:g}" for factor in used) if max(used) else "-",
        )
    console = wide_console()
    console.print(table)
    console.print(
        "\nFrom 0 to 2: harmonic mean of three ratings, 0 if one is 0; on instructions by which no "
        "factor was chosen. Brackets: 95 % bootstrap intervals over concepts.",
        soft_wrap=True,
    )
    if found.n_unread:
        console.print(f"{found.n_unread} answers were no rating, and count as 0.")
