"""`saelab explain`: what latents mean, in a language model's words."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, NonNegativeInt

from saelab.cli.options import Positional
from saelab.cli.parse import parse
from saelab.config import Config, Heading, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from saelab.analysis.explain.explain import Explaining
    from saelab.clients.ledger import Ledger
    from saelab.clients.question import Client, Question
    from saelab.training.run import Run


class ExplainArguments(Config):
    """Explain a run's latents: a language model says what makes each fire.

    Its evidence is in features.h5: strongest examples and those of each stratum, near misses,
    tokens that the latent raises, and what its neighbours fire on. Run `saelab features` first.
    `saelab browse` shows explanations beside the latents, with their source. Each model's set
    (explanations/NAME/ in the run) stands beside others; latents that a set explains already are
    not asked about again.

    --llm NAME asks a server with OpenAI's chat interface: OpenAI, or the one at --base-url. The key
    is read from the environment, and written nowhere. What is asked, and the most that it may cost,
    is said first. After an interruption the same command continues; no answer is paid for twice.
    --llm DIRECTORY runs a local Hugging Face checkpoint of a causal model here.
    --llm tokens asks no model: it says which tokens the strongest examples share.

    With another system: --export-prompts writes the questions, --import reads the answers. Both are
    JSON lines as of OpenAI's batch interface; an answer may also be
    {"custom_id": ..., "answer": ...}.

        saelab explain runs/topk --llm tokens
        saelab explain runs/topk --llm gpt-5-mini --first 200
        saelab explain runs/topk --llm qwen3 --base-url http://localhost:8000/v1
        saelab explain runs/topk --llm mine --export-prompts prompts.jsonl
        saelab explain runs/topk --llm mine --import answers.jsonl
    """

    run: Annotated[Path, Positional("RUN")]
    """The run's directory."""
    llm: Annotated[str | None, Heading("Who explains")] = None
    """The model: its name at the server, a checkpoint's directory, or `tokens` for token
    statistics."""
    name: str | None = None
    """Name of the set of explanations; default: the last part of the model's name."""
    base_url: str | None = None
    """Address of a server with OpenAI's interface; default: OpenAI's own."""
    key_name: str = "OPENAI_API_KEY"
    """The environment variable that holds the key."""
    latents: Annotated[tuple[NonNegativeInt, ...], Heading("What is explained")] = ()
    """Only these latents; default: all that fire."""
    first: int | None = Field(default=None, gt=0)
    """Only this many latents, the first ones."""
    max_requests: Annotated[int | None, Heading("Budget and pace")] = Field(default=None, gt=0)
    """The most requests, failed ones included; default: a fifth more than questions."""
    max_tokens: int | None = Field(default=None, gt=0)
    """The most tokens of prompts and answers; default: enough for all questions."""
    parallel: int = Field(default=8, gt=0, le=256)
    """Requests at once."""
    per_minute: int | None = Field(default=None, gt=0)
    """Requests begun in a minute, at most; default: no limit."""
    attempts: int = Field(default=5, gt=0)
    """Requests for one question, at most."""
    backoff: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Seconds before the second of them; each later one waits twice as long."""
    timeout: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    """Seconds that a request may take."""
    device: Annotated[str, Heading("Who explains")] = "auto"
    """Where a local model runs: cpu, cuda, ...; auto takes the GPU if there is one."""
    export_prompts: Annotated[Path | None, Heading("With another system")] = None
    """Write the questions to this file, and ask nobody."""
    import_: Path | None = None
    """Read the answers from this file."""


def main(arguments: list[str]) -> int:
    """Parse and run."""
    args = parse(ExplainArguments, "explain", arguments)
    _check(args)
    from saelab.lock import writing
    from saelab.training.run import Run

    run = Run(args.run)
    if args.export_prompts is not None:
        return _export(args, run)
    with writing(run.path):
        return _explain(args, run)


def _check(args: ExplainArguments) -> None:
    """Refuse what does not fit together, before anything is read."""
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
        return _tell(explaining)
    if args.import_ is not None:
        explaining = begin(run, model, "file", args.name)
        questions = _questions(args, explaining, again=True)
        _import(args.import_, explaining, questions)
        return _tell(explaining, explaining.keep(questions))
    client = client_of(args, model)
    explaining = begin(run, client.model, client.kind, args.name)
    questions = _questions(args, explaining)
    try:
        why = answered(args, list(questions.values()), client, explaining.ledger)
    finally:
        # What was answered is shown, whatever has ended the rest.
        n_left = explaining.keep(questions)
    return _tell(explaining, n_left, why)


def client_of(args: ExplainArguments, model: str) -> "Client":
    """The client of a model: a directory is a local checkpoint, any other name a server's."""
    from saelab.clients.endpoint import EndpointClient
    from saelab.clients.local import LocalClient
    from saelab.lm.checkpoint import location

    if args.base_url is None and Path(model).exists():
        return LocalClient(Path(location(model)), device=args.device)
    return EndpointClient(
        model,
        base_url=args.base_url,
        key_name=args.key_name,
        timeout=args.timeout,
        parallel=args.parallel,
    )


def answered(
    args: ExplainArguments, questions: "Sequence[Question]", client: "Client", ledger: "Ledger"
) -> str:
    """Have the client answer, after its budget was announced; why it ended before its end."""
    from saelab.clients.asking import Budget, Pacing, announce, ask

    budget = Budget.of(questions, args.max_requests, args.max_tokens)
    announce(questions, client, ledger, budget)
    pace = Pacing(args.per_minute, args.attempts, args.backoff)
    return ask(questions, client, ledger, budget, pace)


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


def _tell(explaining: "Explaining", n_left: int = 0, why: str = "") -> int:
    """Print what there is now; 1 if some latents still lack an explanation."""
    texts = explaining.texts
    cost = f", {texts.requests} requests, {texts.tokens} tokens" if texts.requests else ""
    print(f"{len(texts.by_latent)} latents explained by {texts.model}{cost}")
    if n_left:
        print(f"{n_left} have no answer yet; the same command continues. {why}".rstrip())
    print(texts.path)
    return 1 if n_left else 0
