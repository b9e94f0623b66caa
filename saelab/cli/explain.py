"""`saelab explain`: what latents mean, in a language model's words."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, NonNegativeInt

from saelab.cli.options import Positional
from saelab.cli.parse import parse
from saelab.config import Config, Heading, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from saelab.analysis.explain.explain import Explaining
    from saelab.clients.question import Question
    from saelab.training.run import Run


class ExplainArguments(Config):
    """Explain a run's latents: a language model says what makes each fire.

    Its evidence is in features.h5: strongest examples and those of each stratum, near misses,
    tokens that the latent raises, and what its neighbours fire on. Run `saelab features` first.
    `saelab browse` shows explanations beside the latents, with their source. Each model's set
    (explanations/NAME/ in the run) stands beside others; latents that a set explains already are
    not asked about again.

    --llm tokens asks no model: it says which tokens the strongest examples share.

    With another system: --export-prompts writes the questions, --import reads the answers. Both are
    JSON lines as of OpenAI's batch interface; an answer may also be
    {"custom_id": ..., "answer": ...}.

        saelab explain runs/topk --llm tokens
        saelab explain runs/topk --llm gpt-5-mini --export-prompts prompts.jsonl
        saelab explain runs/topk --llm gpt-5-mini --import answers.jsonl
    """

    run: Annotated[Path, Positional("RUN")]
    """The run's directory."""
    llm: Annotated[str | None, Heading("Who explains")] = None
    """The model: `tokens` for token statistics; with --export-prompts and --import, its name."""
    name: str | None = None
    """Name of the set of explanations; default: the last part of the model's name."""
    latents: Annotated[tuple[NonNegativeInt, ...], Heading("What is explained")] = ()
    """Only these latents; default: all that fire."""
    first: int | None = Field(default=None, gt=0)
    """Only this many latents, the first ones."""
    export_prompts: Annotated[Path | None, Heading("With another system")] = None
    """Write the questions to this file, and ask nobody."""
    import_: Path | None = None
    """Read the answers from this file."""


def main(arguments: list[str]) -> int:
    """Parse and run."""
    args = parse(ExplainArguments, "explain", arguments)
    if args.export_prompts is not None and args.import_ is not None:
        raise UsageError("Got --export-prompts and --import; give one.")
    if args.llm is None:
        raise UsageError("Got no --llm; name the model that explains, or `tokens` for none.")
    if args.llm == "tokens" and (args.export_prompts or args.import_):
        raise UsageError("--llm tokens asks nobody; leave --export-prompts and --import out.")
    if args.export_prompts is not None:
        from saelab.files import check_file

        check_file(args.export_prompts, "--export-prompts")
    if args.import_ is not None:
        from saelab.formats.regular import regular_size

        # Refused before the questions are made, which takes minutes for many latents.
        regular_size(args.import_)
    from saelab.lock import writing
    from saelab.training.run import Run

    run = Run(args.run)
    if args.export_prompts is not None:
        return _export(args, run)
    with writing(run.path):
        return _explain(args, run)


def _export(args: ExplainArguments, run: "Run") -> int:
    from saelab.analysis.explain.explain import begin
    from saelab.clients.files import write_questions

    model, path = str(args.llm), args.export_prompts
    assert path is not None
    explaining = begin(run, model, "file", args.name)
    questions = _questions(args, explaining)
    write_questions(path, list(questions.values()), model)
    print(f"{len(questions)} questions; their answers are read by --import")
    print(path)
    return 0


def _explain(args: ExplainArguments, run: "Run") -> int:
    from saelab.analysis.explain.explain import COUNTED, TOKENS, begin, chosen, explain_by_tokens

    model = str(args.llm)
    if model == TOKENS:
        explaining = begin(run, model, TOKENS, args.name, COUNTED)
        explain_by_tokens(explaining, chosen(explaining.features, args.latents, args.first))
        return _tell(explaining, 0)
    if args.import_ is None:
        raise UsageError(
            f"--llm {model} needs --export-prompts or --import; only `tokens` answers by itself."
        )
    explaining = begin(run, model, "file", args.name)
    questions = _questions(args, explaining, again=True)
    _import(args.import_, explaining, questions)
    return _tell(explaining, explaining.keep(questions))


def _questions(
    args: ExplainArguments, explaining: "Explaining", *, again: bool = False
) -> "Mapping[int, Question]":
    """The questions about the chosen latents, of which there must be some."""
    from saelab.analysis.explain.explain import chosen

    latents = chosen(explaining.features, args.latents, args.first)
    questions = explaining.questions(latents, again=again)
    if not questions:
        raise UsageError(
            f"There is nothing to ask: {explaining.texts.path} explains "
            f"{len(explaining.texts.by_latent)} latents, and the others chosen never fire."
        )
    return questions


def _import(path: Path, explaining: "Explaining", questions: "Mapping[int, Question]") -> None:
    from saelab.clients.files import read_answers

    answers, n_failed = read_answers(path, {question.key for question in questions.values()})
    explaining.ledger.add(answers.items())
    if n_failed:
        print(f"{n_failed} lines of {path} hold no answer")


def _tell(explaining: "Explaining", n_left: int) -> int:
    """Print what there is now; 1 if some latents still lack an explanation."""
    texts = explaining.texts
    print(f"{len(texts.by_latent)} latents explained by {texts.model}")
    if n_left:
        print(f"{n_left} have no answer yet; the same command goes on")
    print(texts.path)
    return 1 if n_left else 0
