"""`saelab evaluate`: measure a trained SAE on held-out text."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from saelab.cli.options import Positional
from saelab.cli.parse import parse
from saelab.config import Heading, UsageError
from saelab.evaluation.options import EvaluateOptions

if TYPE_CHECKING:
    from saelab.evaluation.results import Evaluation
    from saelab.training.run import Run


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
        print(json.dumps(result.values(), indent=2))
        return 0
    print_evaluation(run, result)
    print(run.path / "evaluation" / (text or ""))
    return 0


def print_evaluation(run: "Run", result: "Evaluation") -> None:
    """Every table of figures with what each means, and what is missing."""
    from saelab.cli.tables import print_section, wide_console
    from saelab.evaluation.report import not_measured, report

    console = wide_console()
    for section in (*report({run.name: result}), not_measured(result)):
        print_section(console, section)
    spent = ", ".join(f"{name.replace('_', ' ')} {s:.1f}" for name, s in result.seconds.items())
    console.print(f"\nSeconds: {spent}.", style="dim")
