"""`saelab tasks`: the tasks of which papers report figures, on labelled texts."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from saelab.cli.options import Positional
from saelab.cli.parse import parse
from saelab.config import Heading, UsageError
from saelab.evaluation.tasks.options import TaskOptions

if TYPE_CHECKING:
    from saelab.evaluation.tasks.options import Cost
    from saelab.training.run import Run


class TasksArguments(TaskOptions):
    """Measure a run on tasks of which papers report figures: SAEBench's, and those of sae-probes.

    --probe: how well k = 1, 2, 5, 16 latents tell a text's label, beside the best channels, random
    latents, the difference of means and a dense probe. --letters: whether latents of words absorb
    first letters. --tpp: whether latents of one class can be removed alone. --scr: whether latents
    of a spurious label can be removed from a probe that learned it. --ravel: whether one attribute
    of an entity can be changed alone. --unlearn: whether a subject can be forgotten alone. All work
    offline on files of your own, or on the package sae-probes if it is installed (pip install
    --no-deps sae-probes).

    Each task is saved in the run, evaluation/task_*.json, as soon as it is measured: the same
    command continues an interrupted one. --saebench also writes what is known of the run as
    SAEBench writes it, so that its plots read it.

        saelab tasks runs/topk --probe reviews.csv --label-field stars
        saelab tasks runs/topk --probe sae-probes --first 20 --letters
        saelab tasks runs/topk --tpp topics.jsonl --n-train 1000 --n-test 500
        saelab tasks runs/topk --scr biographies.csv --second-label-field gender
        saelab tasks runs/topk --ravel ravel/data --attributes Country Language
        saelab tasks runs/a --unlearn bio.jsonl --keep law.jsonl --forget-text b.txt --keep-text w
        saelab tasks runs/topk --saebench eval_results
    """

    run: Annotated[Path, Positional("RUN")]
    """The directory of the run."""
    model: Annotated[str | None, Heading("Machine")] = None
    """The language model; default: the one that the run was trained on."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes the GPU if there is one."""
    saebench: Annotated[Path | None, Heading("Output")] = None
    """Also write SAEBench's JSON into this directory, a folder for each kind of evaluation."""
    json_: bool = False
    """Print JSON instead of tables."""


def main(arguments: list[str]) -> int:
    """Parse and run."""
    args = parse(TasksArguments, "tasks", arguments)
    given = args.model_fields_set & set(TaskOptions.model_fields)
    options = TaskOptions(**args.model_dump(include=given))
    if options.any or args.saebench is None:
        options.check()
    # Imported here, so that --help does not wait for torch.
    from saelab.training.run import Run

    run = Run(args.run)
    if args.saebench is not None:
        _check_place(args.saebench)
    found = _measured(args, run, options) if options.any else {}
    if args.json_:
        print(json.dumps({name: asdict(result) for name, result in found.items()}, indent=2))
    else:
        _print(run.name, found)
    if args.saebench is not None:
        from saelab.evaluation.tasks.saebench import write_saebench

        for path in write_saebench(run, args.saebench):
            print(path)
    elif not args.json_:
        print(run.path / "evaluation")
    return 0


def _measured(args: TasksArguments, run: "Run", options: TaskOptions) -> dict[str, Any]:
    from saelab.evaluation.tasks.measure import measure_tasks
    from saelab.evaluation.tasks.sources import check_data
    from saelab.lm.load import load_recorded_model

    if run.on_arrays:
        raise UsageError(f"{run.path} was trained on arrays, and tasks need a language model.")
    run.check_finished()
    # Bad data is refused before the model is loaded, which may take minutes.
    asked = check_data(options)
    lm = load_recorded_model(run.model(), name=args.model, device=args.device)
    return measure_tasks(run, lm, options, asked=asked)


def _check_place(path: Path) -> None:
    from saelab.files import check_directory, check_writable

    check_directory(path, "--saebench")
    check_writable(path, "--saebench")


def _print(name: str, found: dict[str, Any]) -> None:
    """Every table of what was measured, what is missing, and what it took."""
    from saelab.cli.tables import print_section, wide_console
    from saelab.console import duration, in_bytes
    from saelab.evaluation.report import not_measured, report
    from saelab.evaluation.results import Evaluation

    evaluation = Evaluation(dict(found))
    console = wide_console()
    for section in (*report({name: evaluation}), not_measured(evaluation)):
        print_section(console, section)
    for kind, result in found.items():
        costs = _costs(result)
        seconds, tokens = (sum(getattr(c, key) for c in costs) for key in ("seconds", "n_tokens"))
        peak = max((c.memory for c in costs), default=0)
        console.print(
            f"{kind}: {duration(seconds)}, {tokens} tokens, {in_bytes(peak)} at most.", style="dim"
        )


def _costs(result: Any) -> "list[Cost]":  # noqa: ANN401 - of any kind
    """The costs of a result, one for each data set."""
    if hasattr(result, "cost"):
        return [result.cost]
    return list({task.asked: task.cost for task in result.tasks.values()}.values())
