"""`saelab explain`: what latents mean, in a language model's words."""

from typing import TYPE_CHECKING

from saelab.cli.explain_asking import ASKING, ExplainArguments, answered, client_of, import_answers
from saelab.cli.parse import parse
from saelab.config import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from saelab.analysis.explain.explain import Explaining
    from saelab.clients.question import Question
    from saelab.training.run import Run


def main(arguments: list[str]) -> int:
    """Parse and run."""
    args = parse(ExplainArguments, "explain", arguments)
    _check(args)
    from saelab.lock import writing
    from saelab.training.run import Run

    if args.calibrate is not None:
        from saelab.cli.explain_scores import calibrate

        with writing(args.calibrate):
            return calibrate(args, args.calibrate)
    assert args.run is not None
    run = Run(args.run)
    if (
        args.export_prompts is not None
        and args.score is None
        and args.side == "input"
        and (args.axbench is None)
    ):
        return _export(args, run)
    with writing(run.path):
        if args.axbench is not None:
            from saelab.cli.explain_axbench import judge_steering

            return judge_steering(args, run)
        if args.score is None:
            return (_explain if args.export_prompts is None else _export)(args, run)
        from saelab.cli.explain_scores import score

        return score(args, run)


def _check(args: ExplainArguments) -> None:
    """Refuse what does not fit together, before anything is read."""
    tasks = (args.score, args.calibrate, args.axbench)
    judges = any(task is not None for task in tasks)
    problems = {
        "Got several of --score, --calibrate and --axbench; give one.": (
            sum(task is not None for task in tasks) > 1
        ),
        "Steering is judged by a model, not by `words`; name one.": args.axbench is not None
        and args.judge == "words",
        "Give a RUN, or --calibrate without one.": (args.calibrate is None) == (args.run is None),
        "Got --export-prompts and --import; give one.": bool(args.export_prompts and args.import_),
        "Scores need a --judge, and no --llm; name the model that judges.": judges
        and (args.judge is None or args.llm is not None),
        "Got --judge without --score, --calibrate or --axbench; give one.": not judges
        and args.judge is not None,
        "Got no --llm; name the model that explains, or `tokens` for none.": not judges
        and args.llm is None,
        "No model is asked; leave --export-prompts and --import out.": bool(
            args.export_prompts or args.import_
        )
        and (args.llm == "tokens" or args.judge == "words"),
    }
    for sentence, holds in problems.items():
        if holds:
            raise UsageError(sentence)
    _check_models(args)
    _check_files(args)


def _check_models(args: ExplainArguments) -> None:
    """Refuse names that are empty, and options of asking where no model is asked."""
    for option, value in (("llm", args.llm), ("judge", args.judge), ("name", args.name)):
        if value is not None and not value.strip():
            raise UsageError(f"Got an empty --{option}; give a name.")
    if args.export_prompts is None and args.import_ is None:
        from saelab.clients.choose import check_there

        for model in filter(None, (args.llm, args.judge)):
            check_there(model, args.base_url)
    _check_ignored(args)


def _check_ignored(args: ExplainArguments) -> None:
    """Refuse options that have no effect beside others."""
    steers = (args.side == "output" and args.llm != "tokens") or args.score is not None
    steers = steers or args.axbench is not None
    given = [name for name in ASKING if name in args.model_fields_set]
    # A language model that is steered has a device, too.
    ignored = [name for name in given if name != "device" or not steers]
    nobody = {
        "--llm tokens": args.llm == "tokens",
        "--judge words": args.judge == "words",
        "--export-prompts": args.export_prompts is not None,
        "--import": args.import_ is not None,
    }
    if ignored and (what := next((name for name, holds in nobody.items() if holds), None)):
        raise UsageError(f"{what} asks no model; leave {_options(ignored)} out.")
    asking = args.llm is not None
    tests = args.score is not None or args.calibrate is not None
    unused = {
        "--score or --calibrate": () if tests else ("examples", "controls"),
        "--axbench": () if args.axbench else ("instructions", "factors", "answer_tokens"),
        "--llm with --side output, --score or --axbench": () if steers else ("model",),
        "--llm": () if asking else ("name",),
        "--llm or --calibrate": () if asking or args.calibrate is not None else ("side",),
        "a RUN": () if args.calibrate is None else ("latents", "controls"),
    }
    for needed, names in unused.items():
        if left := [name for name in names if name in args.model_fields_set]:
            raise UsageError(f"Got {_options(left)} without {needed}; leave it out.")


def _options(names: "list[str]") -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def _check_files(args: ExplainArguments) -> None:
    if args.export_prompts is not None:
        from saelab.files import check_file

        check_file(args.export_prompts, "--export-prompts")
    if args.import_ is not None:
        from saelab.clients.files import read_answers

        # Refused before the questions are made, which takes minutes for many latents.
        read_answers(args.import_, None)


def _export(args: ExplainArguments, run: "Run") -> int:
    from saelab.analysis.explain.explain import begin
    from saelab.clients.files import write_questions

    model, path = str(args.llm), args.export_prompts
    assert path is not None
    explaining = begin(run, model, "file", args.name, side=args.side)
    questions = _questions(args, explaining, run)
    write_questions(path, list(questions.values()), model)
    print(f"{len(questions)} questions; their answers are read by --import")
    print(path)
    return 0


def _explain(args: ExplainArguments, run: "Run") -> int:
    from saelab.analysis.explain.explain import COUNTED, TOKENS, begin, chosen, explain_by_tokens
    from saelab.analysis.explain.output_side import COUNTED as RAISED

    model = str(args.llm)
    if model == TOKENS:
        counted = COUNTED if args.side == "input" else RAISED
        explaining = begin(run, model, TOKENS, args.name, counted, args.side)
        explain_by_tokens(explaining, chosen(explaining.features, args.latents, args.first))
        return _tell(explaining)
    if args.import_ is not None:
        explaining = begin(run, model, "file", args.name, side=args.side)
        questions = _questions(args, explaining, run, again=True)
        import_answers(args.import_, list(questions.values()), explaining.ledger)
        return _tell(explaining, explaining.keep(questions))
    client = client_of(args, model)
    explaining = begin(run, client.model, client.kind, args.name, side=args.side)
    questions = _questions(args, explaining, run)
    try:
        why = answered(args, list(questions.values()), client, explaining.ledger)
    finally:
        # What was answered is shown, whatever has ended the rest.
        n_left = explaining.keep(questions)
    return _tell(explaining, n_left, why)


def _questions(
    args: ExplainArguments, explaining: "Explaining", run: "Run", *, again: bool = False
) -> "Mapping[int, Question]":
    """The questions about the chosen latents, of which there must be some."""
    from saelab.analysis.explain.explain import chosen

    latents = list(chosen(explaining.features, args.latents, args.first))
    if args.side == "output":
        from saelab.analysis.explain.steer_texts import steered_texts

        explaining.steered = steered_texts(
            run, explaining.features, latents, model=args.model, device=args.device
        )
    questions = explaining.questions(latents, again=again)
    if not questions:
        raise UsageError(
            f"There is nothing to ask: {explaining.texts.path} explains "
            f"{len(explaining.texts.by_latent)} latents, and the others chosen never fire."
        )
    return questions


def _tell(explaining: "Explaining", n_left: int = 0, why: str = "") -> int:
    """Print what there is now; 1 if some latents still lack an explanation."""
    texts = explaining.texts
    cost = f", {texts.requests} requests, {texts.tokens} tokens" if texts.requests else ""
    if texts.by_latent or not n_left:
        print(f"{len(texts.by_latent)} latents explained by {texts.model}{cost}")
    if n_left:
        left = f"{n_left} latents have no answer yet, and the same command continues"
        print(f"{left}: {why}" if why else f"{left}.")
    if texts.by_latent:
        print(texts.path)
    return 1 if n_left else 0
