"""Who answers the questions of `saelab explain`, and its options."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeInt

from saelab.cli.options import Positional
from saelab.config import Config, Heading

if TYPE_CHECKING:
    from collections.abc import Sequence

    from saelab.clients.ledger import Ledger
    from saelab.clients.question import Client, Question

ASKING = (
    "base_url",
    "key_name",
    "max_requests",
    "max_tokens",
    "parallel",
    "per_minute",
    "attempts",
    "backoff",
    "timeout",
    "device",
)
"""The options that say how a model is asked."""


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

    --side output explains what a latent does: the language model continues openings with the latent
    turned up and without. These texts stay in the run; a judge tells those of a latent from those
    of others (the test `steering`).

    --score NAME has --judge tell, for texts that the explainer did not see, where the latents of
    that set fire (detection, fuzzing; arXiv 2410.13928), beside controls. --judge words asks no
    model: it looks for words of the explanation. --calibrate DIRECTORY, without a run, measures
    what a judge makes of true, false, too broad and too narrow descriptions, where the truth is
    known (the tiny model's language; with --side output, what the tiny model writes while known
    words are made more likely): do this before you believe its scores.

    --axbench FILE_OR_SET has --judge rate steered answers from 0 to 2 for the concept, the
    instruction and fluency, as AxBench does (2501.17148); the score of an answer is their harmonic
    mean. Beside latents stand difference in means, a probe, ReFT-r1, a prompt, a random direction
    and no steering. A line of FILE is {"concept": ..., "positive": [texts], "negative": [texts]},
    with "latent" or without.

    With another system: --export-prompts writes the questions, --import reads the answers. Both are
    JSON lines as of OpenAI's batch interface; an answer may also be
    {"custom_id": ..., "answer": ...}.

        saelab explain runs/topk --llm tokens
        saelab explain runs/topk --llm gpt-5-mini --first 200
        saelab explain runs/topk --llm qwen3 --base-url http://localhost:8000/v1
        saelab explain runs/topk --llm mine --export-prompts prompts.jsonl
        saelab explain runs/topk --llm mine --import answers.jsonl
        saelab explain --calibrate judges --judge gpt-5-mini
        saelab explain runs/topk --score gpt-5-mini --judge gpt-5-mini --first 100
        saelab explain runs/topk --llm gpt-5-mini --side output --first 50
        saelab explain runs/topk --axbench gpt-5-mini --judge gpt-5-mini --first 10
    """

    run: Annotated[Path | None, Positional("RUN")] = None
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
    side: Literal["input", "output"] = "input"
    """input: what makes a latent fire; output: what it does to what the model writes, from texts
    that the language model writes with the latent turned up."""
    judge: Annotated[str | None, Heading("Scores")] = None
    """Who judges, named as in --llm, or `words` for no model."""
    score: str | None = None
    """Score the set of this name."""
    calibrate: Path | None = None
    """Calibrate the judge, and keep the results in this directory."""
    axbench: str | None = None
    """Judge steering to the concepts in this file (.jsonl), or to those that the set of this name
    explains."""
    instructions: Path | None = None
    """With --axbench: instructions, one a line; default: ten of saelab's own."""
    factors: tuple[float, ...] = (0.4, 0.8, 1.2, 1.6, 2.5, 4.0)
    """With --axbench: strengths, in units of a direction's largest activation."""
    answer_tokens: int = Field(default=64, gt=0)
    """With --axbench: tokens of an answer."""
    examples: int = Field(default=5, gt=1)
    """Texts with and as many without a firing, for each test of a latent."""
    controls: int = Field(default=20, ge=0)
    """Latents that are also judged by controls: no explanation, another latent's, by tokens."""
    latents: Annotated[tuple[NonNegativeInt, ...], Heading("What is explained")] = ()
    """Only these latents; default: all that fire."""
    first: int | None = Field(default=None, gt=0)
    """Only this many latents, the first ones; with --calibrate, this many features."""
    max_requests: Annotated[int | None, Heading("Budget and pace")] = Field(default=None, gt=0)
    """The most requests, failed ones included; default: a fifth more than questions, and
    ten."""
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
    model: Annotated[str | None, Heading("Machine")] = None
    """The language model that is steered; default: the one that the run was trained on."""


def client_of(args: ExplainArguments, model: str) -> "Client":
    """The client of a model, as the options say."""
    from saelab.clients.choose import client_of

    return client_of(
        model,
        base_url=args.base_url,
        key_name=args.key_name,
        timeout=args.timeout,
        parallel=args.parallel,
        device=args.device,
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


def import_answers(path: Path, questions: "Sequence[Question]", ledger: "Ledger") -> None:
    """Enter the answers of a file."""
    from saelab.clients.files import read_answers

    answers, n_failed = read_answers(path, {question.key for question in questions})
    ledger.add(answers.items())
    if n_failed:
        print(f"{n_failed} lines of {path} hold no answer")
