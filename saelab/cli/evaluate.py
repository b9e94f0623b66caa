"""`saelab evaluate`: measure a trained SAE on held-out text."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from saelab.cli.options import Positional
from saelab.cli.parse import parse
from saelab.config import Heading, UsageError
from saelab.evaluation.options import EvaluateOptions

if TYPE_CHECKING:
    from saelab.activations.corpus import Corpus
    from saelab.evaluation.results import Evaluation
    from saelab.lm.protocol import LanguageModel
    from saelab.training.run import Run


class EvaluateArguments(EvaluateOptions):
    """Measure a trained SAE, or a set of them, on text that no training saw.

    It measures how faithful the SAE is (FVU, L0, the cost of splicing the reconstruction into the
    model), how its latents are used and how many bits they need, and their effect on the model's
    predictions. If the text has ground-truth labels, it measures how well single latents and sparse
    probes find them, and how often special latents absorb a general one. Writes evaluation/*.json
    in the run. For everything that cannot be measured, the reason is given.

    Of a set (see `saelab train sweep`), each run is measured by the core suite, and then the model
    with all of them at once in place of its attentions and MLPs. Writes evaluation.json and .html
    in the set; the same command continues an interrupted one.

        saelab evaluate runs/topk
        saelab evaluate runs/wide --metrics reconstruction downstream density
        saelab evaluate runs/topk --encoder omp --suite core --n-tokens 10000
        saelab evaluate runs/topk --suite core --text my_text.jsonl --labels topic
        saelab evaluate runs/transcoders
    """

    run: Annotated[Path, Positional("RUN")]
    """The directory of the run, or of the set."""
    suite: Annotated[Literal["core", "full"], Heading("Measurements")] = "full"
    """core: reconstruction, downstream cost, known features, density and dictionary. full: also
    recovery against mean ablation, description length, uniformity, sparse probing, absorption and
    ablation sparsity, which take about the same time again. A set's runs always take core."""
    text: Annotated[str | None, Heading("Another text")] = None
    """Another text to measure on, as for saelab harvest. All of it counts as held out, unless it is
    the text that the run was trained on. Default: the held-out part of the training text."""
    text_field: str = "text"
    """With --text: the field of its rows that holds the text."""
    labels: tuple[str, ...] = ()
    """With --text: fields of its rows that are labels, or a JSONL file of labels; default: the
    rows' own labels and spans; none: no labels."""
    roles: tuple[str, ...] = ()
    """With --text, in conversations: the roles whose tokens count, e.g. assistant; default: all."""
    model: Annotated[str | None, Heading("Machine")] = None
    """The language model; default: the one that the run was trained on."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes the GPU if there is one."""
    json_: Annotated[bool, Heading("Output")] = False
    """Print JSON instead of tables."""


def main(arguments: list[str]) -> int:
    """Parse and run."""
    args = parse(EvaluateArguments, "evaluate", arguments)
    # Imported here, so that --help does not wait for torch.
    from saelab.evaluation.evaluate import evaluate
    from saelab.evaluation.results import load_evaluation, place
    from saelab.evaluation.suite import asked_for
    from saelab.host.host import load_model_of
    from saelab.lock import writing
    from saelab.training.run import Run
    from saelab.training.sets import is_set

    options = EvaluateOptions(**args.model_dump(include=set(EvaluateOptions.model_fields)))
    options.check()
    asked_for(options)
    if args.text is None and (args.labels or args.roles):
        raise UsageError("--labels and --roles belong to the text that --text names; name one.")
    if is_set(args.run):
        return _set(args, options)
    run, corpus = Run(args.run), None
    with writing(run.path):
        if run.on_arrays:
            given = [f"--{name}" for name in ("text", "model") if getattr(args, name) is not None]
            if given:
                raise UsageError(f"{run.path} was trained on arrays; leave out {given[0]}.")
            result = evaluate(run, options=options, device=args.device)
        else:
            _check_text(args)
            lm = load_model_of([run], name=args.model, device=args.device)
            corpus = _other_text(args, run, lm)
            result = evaluate(run, lm, options, corpus=corpus)
    if args.json_:
        print(json.dumps(result.values(), indent=2))
        return 0
    own = None
    if options.encoder is not None:
        as_it_is = options.model_copy(update={"encoder": None})
        own = load_evaluation(run, text=place(run, corpus, as_it_is))
    print_evaluation(run, result, own)
    print(run.path / "evaluation" / (place(run, corpus, options) or ""))
    return 0


def _check_text(args: EvaluateArguments) -> None:
    """Refuse a text that is not there, before the model is loaded."""
    from saelab.activations.open_text import check_text

    if args.text is not None:
        check_text(args.text, args.labels)


def _other_text(args: EvaluateArguments, run: "Run", lm: "LanguageModel") -> "Corpus | None":
    from saelab.evaluation.other_text import TextOptions, other_text

    if args.text is None:
        return None
    reading = TextOptions(args.text_field, args.labels, args.roles)
    return other_text(run, lm, args.text, options=reading, n_tokens=args.n_tokens)


def _set(args: EvaluateArguments, options: EvaluateOptions) -> int:
    """Measure a set, print its tables, and draw them."""
    from saelab.cli.tables import print_section, wide_console
    from saelab.evaluation.set_results import set_sections
    from saelab.evaluation.sets import check_options, evaluate_set, set_file
    from saelab.figures.evaluation import set_figure
    from saelab.files import atomic_write
    from saelab.host.host import load_model_of
    from saelab.training.sets import RunSet

    check_options(options)
    runs = RunSet(args.run)
    first = runs.runs[0]
    _check_text(args)
    lm = load_model_of(runs.runs, name=args.model, device=args.device)
    corpus = _other_text(args, first, lm)
    options = options.model_copy(update={"suite": "core"})
    found = evaluate_set(runs, lm, options, corpus=corpus)
    path = set_file(runs, corpus).with_suffix(".html")
    atomic_write(path, set_figure(found).to_html(include_plotlyjs=True).encode())
    if args.json_:
        print(json.dumps(found.values(), indent=2))
        return 0
    console = wide_console()
    for section in set_sections(found):
        print_section(console, section)
    print(path)
    return 0


def print_evaluation(run: "Run", result: "Evaluation", own: "Evaluation | None" = None) -> None:
    """Every table of figures with what each means, and what is missing.

    For the results of another encoder, `own` are those of the SAE's own, to be shown beside them.
    """
    from saelab.cli.tables import print_section, wide_console
    from saelab.evaluation.report import beside, not_measured, report

    console = wide_console()
    encoder = result.amortisation and result.amortisation.encoder
    tables = report({run.name: result})
    if own is not None and encoder:
        tables = beside(run.name, own, {encoder: result})
    for section in (*tables, not_measured(result)):
        print_section(console, section)
    spent = ", ".join(f"{name.replace('_', ' ')} {s:.1f}" for name, s in result.seconds.items())
    console.print(f"\nSeconds: {spent}.", style="dim")
