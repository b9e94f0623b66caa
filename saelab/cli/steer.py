"""`saelab steer`: the effect of latents on what the model writes."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeInt

from saelab.cli.options import Positional
from saelab.cli.parse import parse
from saelab.config import Config, Heading, UsageError

if TYPE_CHECKING:
    from saelab.analysis.steering.generate import Sampling
    from saelab.analysis.steering.interventions import Intervention
    from saelab.host.host import Host
    from saelab.lm.protocol import LanguageModel
    from saelab.training.run import Run


class SteerArguments(Config):
    """Steer the language model with a run's latents, or measure which latents steer.

    --all scores every latent (arXiv 2505.20063) and writes steering.h5. A high input score means
    that the latent fires on the tokens that its decoder row raises. A high output score means that
    the model writes these tokens when the latent is added to a neutral prompt. Steering needs a
    high output score. Run `saelab features` first.

    --latents 12 99 --strength 4 adds these latents, each at 4 times the largest activation at the
    position, and prints the steered text beside the plain one. With --dose it shows a range of
    strengths: the target's probability, and the cost.

    --concepts (shipped model) compares latents with difference-in-means on known concepts at equal
    KL. --success N steers with N random latents. It shows by what factor filtering by score raises
    the success, with a 95 % interval, beside as many random latents and random directions, and how
    many of these would pass the filter. Both need --all first and write evaluation/steering_*.json.

        saelab steer runs/topk --all
        saelab steer runs/topk --latents 12 99 --strength 4 --prompt "anna met john"
    """

    run: Annotated[Path, Positional("RUN")]
    """The run's directory."""
    all: Annotated[bool, Heading("What to do")] = False
    """Score all latents; write steering.h5."""
    latents: tuple[NonNegativeInt, ...] = ()
    """Steer with these latents, all together."""
    concepts: bool = False
    """Compare latents with difference-in-means on the grammar's concepts."""
    success: int = Field(default=0, ge=0)
    """Measure the steering success of this many random latents; 0 for none."""
    prompt: Annotated[str | None, Heading("Prompt")] = None
    """Text to continue, or the neutral prompt of --all; it may name special tokens; default: a
    neutral sentence."""
    chat: bool = False
    """Put the prompt through the model's chat template; it is a user's message, or messages as JSON
    (`[{"role": "user", "content": ...}]`)."""
    strength: Annotated[float | None, Heading("How latents are changed")] = None
    """Amount to add or set, in --unit; with `scale`, the factor. Default: 4, with --all 10."""
    op: Literal["add", "scale", "clamp", "ablate"] = "add"
    """add to the latents, scale them, clamp them to a value, or ablate them (set them to zero)."""
    unit: Literal["a_max", "latent_max", "absolute"] = "a_max"
    """Meaning of strength 1: the largest activation of any latent at the position, the latent's own
    largest activation in features.h5, or 1."""
    positions: Literal["last", "all"] | NonNegativeInt = "last"
    """Where to steer: from the prompt's last token on, everywhere, or from this position on."""
    error: Literal["keep", "drop"] = "keep"
    """Whether the SAE's error stays in the activations."""
    dose: Annotated[bool, Heading("What to do")] = False
    """With --latents: show a range of strengths instead of one."""
    target: str | None = None
    """With --dose: the token to follow, by its name (" dog" in vocabularies with spaces); default:
    the one that the latents raise most."""
    n_tokens: Annotated[int, Heading("Generation")] = Field(default=20, gt=0)
    """Tokens to generate."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature; 0 always takes the most likely token."""
    n_samples: int = Field(default=1, gt=0)
    """Number of continuations of the prompt."""
    form: Annotated[Literal["difference", "paper", "repository"], Heading("Scores")] = "difference"
    """Form of the output score: steered minus plain, with the SAE's error kept; as the paper
    defines it (error dropped); or as its authors' code computes it (error kept, nothing
    subtracted)."""
    top: int = Field(default=15, gt=0)
    """Number of latents to print after --all."""
    seed: Annotated[int, Heading("Generation")] = 0
    """Decides samples, prompts and random latents."""
    model: Annotated[str | None, Heading("Machine")] = None
    """The language model; default: the one that the run was trained on."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes the GPU if there is one."""
    json_: Annotated[bool, Heading("Output")] = False
    """Print JSON instead of tables."""


def main(arguments: list[str]) -> int:
    """Parse and run."""
    args = parse(SteerArguments, "steer", arguments)
    modes = [bool(args.latents), args.all, args.concepts, args.success > 0]
    if sum(modes) != 1:
        raise UsageError(
            f"Got {sum(modes)} of --latents I ..., --all, --concepts and --success N; give one."
        )
    if args.prompt is not None and not (args.latents or args.all):
        raise UsageError("--concepts and --success have prompts of their own; leave --prompt out.")
    if args.chat and args.prompt is None:
        raise UsageError("Got --chat without --prompt; give what the user says.")
    # Imported here, so that --help does not wait for torch.
    from saelab.host.host import load_model_of
    from saelab.lock import writing
    from saelab.sae.decoder import check_decoder
    from saelab.training.run import Run

    run = Run(args.run)
    check_decoder(run.config.sae)
    mode = (_steer, _score, _concepts, _success)[modes.index(True)]
    # All modes except --latents write into the run.
    with nullcontext() if args.latents else writing(run.path):
        lm = load_model_of([run], name=args.model, device=args.device)
        mode(args, run, lm)
    return 0


def _prompt(args: SteerArguments, lm: "LanguageModel") -> str | None:
    from saelab.lm.prompt import chat_prompt

    return chat_prompt(lm, args.prompt) if args.chat and args.prompt is not None else args.prompt


def _score(args: SteerArguments, run: "Run", lm: "LanguageModel") -> None:
    from saelab.analysis.steering.measures import ScoreOptions
    from saelab.analysis.steering.records import steering_path
    from saelab.analysis.steering.scores import steering_scores
    from saelab.cli.steer_tables import print_scores

    strength = 10.0 if args.strength is None else args.strength
    options = ScoreOptions(prompt=_prompt(args, lm), form=args.form, strength=strength)
    scores = steering_scores(run, lm, options)
    path = steering_path(run.path)
    if args.json_:
        best = [scores.record(row) for row in scores.best(args.top)]
        _print_json({"path": str(path), "summary": scores.summary(), "best": best})
        return
    print_scores(scores, args.top)
    print(path)


def _steer(args: SteerArguments, run: "Run", lm: "LanguageModel") -> None:
    from saelab.analysis.steering.edits import with_maxima
    from saelab.analysis.steering.generate import Sampling, steer
    from saelab.analysis.steering.interventions import Intervention
    from saelab.analysis.steering.measures import neutral_prompt
    from saelab.cli.steer_tables import print_comparison
    from saelab.host.host import Host

    change = Intervention(
        latents=args.latents,
        op=args.op,
        amount=4.0 if args.strength is None else args.strength,
        unit=args.unit,
        positions=args.positions,
        error=args.error,
    )
    sampling = Sampling(
        n_tokens=args.n_tokens,
        temperature=args.temperature,
        n_samples=args.n_samples,
        seed=args.seed,
    )
    host, prompt = with_maxima(Host.of_run(run, lm)), _prompt(args, lm) or neutral_prompt(lm)
    if args.dose:
        _dose(args, host, change, prompt, sampling)
        return
    found = steer(host, change, prompt, sampling)
    if args.json_:
        _print_json(found.values())
        return
    print_comparison(found)


def _dose(
    args: SteerArguments,
    host: "Host",
    change: "Intervention",
    prompt: str,
    sampling: "Sampling",
) -> None:
    from saelab.analysis.steering.dose import STRENGTHS, dose_response
    from saelab.cli.steer_tables import print_dose

    sign = -1 if change.amount < 0 else 1
    strengths = [sign * strength for strength in STRENGTHS]
    dose = dose_response(host, change, prompt, strengths, target=args.target, sampling=sampling)
    if args.json_:
        _print_json(dose.values())
        return
    print_dose(dose)


def _concepts(args: SteerArguments, run: "Run", lm: "LanguageModel") -> None:
    from saelab.analysis.steering.concept_steering import ConceptOptions, concept_steering
    from saelab.analysis.steering.records import load_steering_scores
    from saelab.cli.steer_tables import print_concepts

    scores = load_steering_scores(run.path)
    result = concept_steering(run, lm, scores, ConceptOptions(seed=args.seed))
    path = run.save_evaluation("steering_concepts", result.values())
    if args.json_:
        _print_json(result.values())
        return
    print_concepts(result)
    print(path)


def _success(args: SteerArguments, run: "Run", lm: "LanguageModel") -> None:
    from saelab.analysis.steering.records import load_steering_scores
    from saelab.analysis.steering.success import SuccessOptions, steering_success
    from saelab.cli.steer_tables import print_success

    scores = load_steering_scores(run.path)
    options = SuccessOptions(n_latents=args.success, seed=args.seed)
    result = steering_success(run, lm, scores, options)
    path = run.save_evaluation("steering_success", result.values())
    if args.json_:
        _print_json(result.values())
        return
    print_success(result)
    print(path)


def _print_json(values: Any) -> None:  # noqa: ANN401 - any JSON value
    print(json.dumps(values, indent=2, allow_nan=False))
