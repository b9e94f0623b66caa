"""Live steering: an experiment as a value, and its results.

torch is imported where an experiment is run, so that a page can draw one without it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

import streamlit as st
from pydantic import Field, NonNegativeInt, ValidationError, model_validator

from feature_browser.data.reading import stamp
from feature_browser.live.chat import prompted
from feature_browser.live.model import lock_of
from saelab.analysis.records import features_file
from saelab.config import Config, UsageError, first_problem
from saelab.lm.prompt import LONGEST, prompt_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from saelab.analysis.steering.conversation import Exchange
    from saelab.analysis.steering.dose import DoseResponse
    from saelab.analysis.steering.generate import Comparison, Continuation, Sampling
    from saelab.analysis.steering.interventions import Intervention
    from saelab.host.host import Host

OPS = {
    "add": "add to its value",
    "scale": "multiply its value",
    "clamp": "set its value",
    "ablate": "ablate: set it to 0",
}
UNITS = {
    "latent_max": "of its maximum",
    "a_max": "of the strongest latent there",
    "absolute": "of activation",
}
ERRORS = {"keep": "error kept", "drop": "error dropped"}
DOSES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
"""Strengths of the dose curve, as multiples of the experiment's own."""
DOSE_TOKENS, DOSE_SAMPLES = 12, 2
DIAL = (-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)
"""Notches of the slider, in the distance from the unchanged model to the experiment."""
MOST_STRENGTH = 1e6
MOST_TURNS = 40


class Experiment(Config):
    """What to change, where, and how to sample the continuation."""

    prompt: str = Field(min_length=1, max_length=LONGEST)
    """The text to continue."""
    chat: bool = False
    """Whether the prompt goes through the model's chat template first."""
    latents: tuple[NonNegativeInt, ...] = Field(min_length=1, max_length=100)
    """The latents to change, all together."""
    op: Literal["add", "scale", "clamp", "ablate"] = "add"
    """add: a + strength; scale: a * strength; clamp: strength; ablate: zero."""
    strength: float = Field(default=1.0, ge=-MOST_STRENGTH, le=MOST_STRENGTH, allow_inf_nan=False)
    """The strength in `unit`; for `scale`, the factor."""
    unit: Literal["latent_max", "a_max", "absolute"] = "latent_max"
    """latent_max: each latent's largest activation in features.h5; a_max: the largest of any latent
    at the position; absolute: 1."""
    positions: Literal["last", "all"] | NonNegativeInt = "last"
    """last: from the prompt's last token on; all; or from a position on (0 is <bos>)."""
    error: Literal["keep", "drop"] = "keep"
    """keep: x + (x_hat' - x_hat); drop: x_hat' alone."""
    n_tokens: int = Field(default=20, gt=0, le=200)
    """Tokens to generate."""
    temperature: float = Field(default=0.0, ge=0, le=10, allow_inf_nan=False)
    """0 takes the most likely token."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Decides the sample; plain and steered text use the same random numbers."""
    dose: bool = False
    """Whether to run a range of strengths too."""
    then: tuple[Annotated[str, Field(min_length=1, max_length=LONGEST)], ...] = Field(
        default=(), max_length=MOST_TURNS
    )
    """In a chat, what is said after the first answer, message by message."""

    @model_validator(mode="after")
    def _check_chat(self) -> "Experiment":
        if self.then and not self.chat:
            raise ValueError("only a chat goes on after the first answer")
        return self

    @property
    def text(self) -> str:
        """The experiment as one line of text for the address."""
        return self.model_dump_json(exclude_defaults=True)


def experiment_of(text: str) -> Experiment:
    """The experiment in an address or a form.

    Raises:
        UsageError: it is invalid; the sentence names the first wrong field.
    """
    try:
        return Experiment.model_validate_json(text)
    except ValidationError as error:
        raise UsageError(f"This is not an experiment ({first_problem(error)}).") from None


@contextmanager
def _explained() -> Iterator[None]:
    """An error of the running model, or of the check that a change works, as one sentence."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"The model could not be steered: {reason}") from error


@_explained()
def run_experiment(live: "Host", experiment: Experiment) -> "Comparison":
    """The prompt continued with and without the change, after a check that the change works.

    Raises:
        UsageError: the experiment does not fit the model, or the change did not take effect.
    """
    from saelab.analysis.steering.generate import steer

    with lock_of(live.lm):
        _check_length(live, experiment, experiment.n_tokens)
        prompt = prompted(live, experiment.prompt, chat=experiment.chat)
        return steer(_with_maxima(live), _change(experiment), prompt, _sampling(experiment))


def dialled(experiment: Experiment) -> "list[Experiment]":
    """The experiment at every strength of the slider, its own too; none if it has none to vary."""
    # The factor that multiplies a latent changes nothing at 1.
    unchanged = 1.0 if experiment.op == "scale" else 0.0
    away = experiment.strength - unchanged
    if experiment.op == "ablate" or not away:
        return []
    others = {float(f"{unchanged + part * away:.6g}") for part in DIAL if part != 1}
    strengths = sorted({experiment.strength, *others}, reverse=away < 0)
    return [
        experiment.model_copy(update={"strength": strength})
        for strength in strengths
        if abs(strength) <= MOST_STRENGTH
    ]


@_explained()
def run_dialled(live: "Host", experiment: Experiment) -> "list[Continuation]":
    """What is said at each strength of `dialled`, with the experiment's own random numbers.

    Raises:
        UsageError: as `run_experiment` does.
    """
    from saelab.analysis.steering.generate import steer_at

    strengths = [one.strength for one in dialled(experiment)]
    with lock_of(live.lm):
        prompt = prompted(live, experiment.prompt, chat=experiment.chat)
        host, change = _with_maxima(live), _change(experiment)
        return steer_at(host, change, prompt, strengths, _sampling(experiment))


@_explained()
def run_reply(live: "Host", experiment: Experiment, earlier: "Sequence[Exchange]") -> "Exchange":
    """Both models' answers to the experiment's last message, after those to the `earlier` ones.

    Raises:
        UsageError: as `run_experiment` does.
    """
    from saelab.analysis.steering.conversation import reply

    message = [experiment.prompt, *experiment.then][len(earlier)]
    with lock_of(live.lm):
        host, change = _with_maxima(live), _change(experiment)
        return reply(host, change, earlier, message, _sampling(experiment))


@_explained()
def run_doses(live: "Host", experiment: Experiment) -> "DoseResponse | None":
    """The experiment at multiples of its strength; None if it has no strength.

    Raises:
        UsageError: as `run_experiment` does.
    """
    if experiment.op == "ablate" or not experiment.strength:
        return None
    from saelab.analysis.steering.dose import dose_response
    from saelab.analysis.steering.generate import Sampling

    strengths = [dose * experiment.strength for dose in DOSES]
    n_tokens = min(experiment.n_tokens, DOSE_TOKENS)
    sampling = Sampling(
        n_tokens=n_tokens, temperature=0.7, n_samples=DOSE_SAMPLES, seed=experiment.seed
    )
    with lock_of(live.lm):
        _check_length(live, experiment, n_tokens)
        host, change = _with_maxima(live), _change(experiment)
        prompt = prompted(live, experiment.prompt, chat=experiment.chat)
        return dose_response(host, change, prompt, strengths, sampling=sampling)


def _check_length(live: "Host", experiment: Experiment, n_tokens: int) -> None:
    prompt = prompted(live, experiment.prompt, chat=experiment.chat)
    n_prompt, n_ctx = len(prompt_tokens(live.lm, prompt)), live.lm.info.n_ctx
    if n_prompt + n_tokens > n_ctx:
        raise UsageError(
            f"{n_prompt} tokens of prompt and {n_tokens} more exceed the {n_ctx} that "
            f"{live.lm.info.name} reads; generate fewer, or shorten the prompt."
        )


def _with_maxima(live: "Host") -> "Host":
    assert live.run is not None
    stamps = (stamp(live.run.weights), stamp(features_file(live.run.path)))
    return _kept_with_maxima(live, str(live.run.path), stamps)


@st.cache_resource(max_entries=8, show_spinner=False)
def _kept_with_maxima(_live: "Host", path: str, stamps: tuple[int, int]) -> "Host":
    del path, stamps  # part of the cache's key only
    from saelab.analysis.steering.edits import with_maxima

    return with_maxima(_live)


def _change(experiment: Experiment) -> "Intervention":
    from saelab.analysis.steering.interventions import Intervention

    return Intervention(
        latents=experiment.latents,
        op=experiment.op,
        amount=experiment.strength,
        unit=experiment.unit,
        positions=experiment.positions,
        error=experiment.error,
    )


def _sampling(experiment: Experiment) -> "Sampling":
    from saelab.analysis.steering.generate import Sampling

    return Sampling(
        n_tokens=experiment.n_tokens, temperature=experiment.temperature, seed=experiment.seed
    )
