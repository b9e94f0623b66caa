"""`saelab tasks`: the tasks of which papers report figures, on labelled texts."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from saelab.cli.options import Positional
from saelab.cli.parse import parse
from saelab.config import Heading, UsageError
from saelab.evaluation.tasks.options import TASKS, TaskOptions, option

if TYPE_CHECKING:
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
    command continues an interrupted one. Without a task, the command prints all that the run holds
    in one table, with the time and the memory that each took. --saebench also writes what is known
    of the run as SAEBench writes it, so that its plots read it.

        saelab tasks runs/topk --probe reviews.csv --label-field stars
        saelab tasks runs/topk --probe sae-probes --first 20 --letters
        saelab tasks runs/topk --letters --rules saebench --n-words 3000 --saebench eval_results
        saelab tasks runs/topk --tpp topics.jsonl --n-train 1000 --n-test 500
        saelab tasks runs/topk --scr biographies.csv --second-label-field gender
        saelab tasks runs/topk --ravel ravel/data --attributes Country Language
        saelab tasks runs/a --unlearn bio.jsonl --keep law.jsonl --forget-text b.txt --keep-text w
        saelab tasks runs/topk --csv tasks.csv
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
    csv: Path | None = None
    """Also write the one table of all tasks of the run as CSV: shares, seconds and bytes."""
    json_: bool = False
    """Print JSON instead of tables."""


def main(arguments: list[str]) -> int:
    """Parse and run."""
    args = parse(TasksArguments, "tasks", arguments)
    given = args.model_fields_set & set(TaskOptions.model_fields)
    options = TaskOptions(**args.model_dump(include=given))
    options.check()
    if given and not options.any:
        tasks = ", ".join(map(option, TASKS))
        raise UsageError(f"{option(min(given))} belongs to a task; give one of {tasks}.")
    # Imported here, so that --help does not wait for torch.
    from saelab.training.run import Run

    run = Run(args.run)
    _check_places(args)
    found = _measured(args, run, options) if options.any else _held(run, args)
    if args.json_:
        print(json.dumps({name: asdict(result) for name, result in found.items()}, indent=2))
    elif found:
        _print(run.name, found, whole=options.any)
    if args.csv is not None:
        _write_csv(run, args.csv)
    if args.saebench is not None:
        from saelab.evaluation.tasks.saebench import write_saebench

        for path in write_saebench(run, args.saebench):
            print(path)
    elif not args.json_:
        print(run.path / "evaluation" if args.csv is None else args.csv)
    return 0


def _held(run: "Run", args: TasksArguments) -> dict[str, Any]:
    """What was measured before; nothing is no mistake where SAEBench's files are asked for."""
    from saelab.evaluation.tasks.measure import saved_tasks

    found = saved_tasks(run)
    if not found and (args.saebench is None or args.csv is not None):
        every = ", ".join(map(option, TASKS))
        raise UsageError(f"{run.path} holds no task yet; give one to measure: {every}.")
    return found


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


def _check_places(args: TasksArguments) -> None:
    """Refuse places that cannot be written, before anything is measured."""
    from saelab.files import check_file, check_writable

    if args.saebench is not None:
        check_writable(args.saebench, "--saebench")
    if args.csv is not None:
        check_file(args.csv, "--csv")


def _write_csv(run: "Run", path: Path) -> None:
    from saelab.evaluation.tasks.measure import saved_tasks
    from saelab.evaluation.tasks.summary import summary_csv
    from saelab.files import atomic_write

    atomic_write(path, summary_csv(saved_tasks(run)).encode())


def _print(name: str, found: dict[str, Any], *, whole: bool) -> None:
    """What the results say in short and what they took; as a whole, also every table of them."""
    from saelab.cli.tables import print_section, wide_console
    from saelab.evaluation.report import not_measured, report
    from saelab.evaluation.results import Evaluation
    from saelab.evaluation.tasks.summary import summary

    console, evaluation = wide_console(), Evaluation(dict(found))
    for section in report({name: evaluation}) if whole else ():
        print_section(console, section)
    print_section(console, not_measured(evaluation))
    print_section(console, summary(found))
