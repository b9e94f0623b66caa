"""Steering as a command and as Python."""

from feature_browser.data.catalogue import OWN_ARRAYS, RunCard
from feature_browser.data.elsewhere import NOWHERE, Elsewhere, command, python
from feature_browser.pages.steering.address import SteeringAddress
from feature_browser.pages.steering.experiment import Experiment, experiment_of
from saelab.config import UsageError


def steering_elsewhere(card: RunCard, address: SteeringAddress) -> Elsewhere:
    """The experiment of the address, or all latents' scores."""
    if card.model == OWN_ARRAYS:
        return NOWHERE
    if address.part != "live":
        scores = python(card, "import saelab", "", "scores = saelab.load_steering_scores($RUN)")
        return Elsewhere(command("steer", card.path, "--all"), scores)
    try:
        experiment = experiment_of(address.experiment)
    except UsageError:
        return NOWHERE
    # The command continues one prompt.
    said = "" if experiment.then else _command(card, experiment)
    return Elsewhere(said, _python(card, experiment))


def _command(card: RunCard, experiment: Experiment) -> str:
    options = {
        "--op": experiment.op,
        "--strength": f"{experiment.strength:g}",
        "--unit": experiment.unit,
        "--positions": experiment.positions,
        "--error": experiment.error,
        "--prompt": experiment.prompt,
        "--n-tokens": experiment.n_tokens,
        "--temperature": f"{experiment.temperature:g}",
        "--seed": experiment.seed,
    }
    words = [word for pair in options.items() for word in pair]
    switches = [f"--{name}" for name in ("chat", "dose") if getattr(experiment, name)]
    return command("steer", card.path, "--latents", *experiment.latents, *words, *switches)


def _python(card: RunCard, experiment: Experiment) -> str:
    prompt = "chat_prompt(lm, $prompt)" if experiment.chat else "$prompt"
    imports = ["from saelab.lm.prompt import chat_prompt"] if experiment.chat else []
    lines = [
        f"told = saelab.steer(host, change, {prompt}, sampling)",
        'print("plain:", told.plain[0].text)',
        'print("steered:", told.steered[0].text)',
    ]
    if experiment.then:
        imports = ["from saelab.analysis.steering.conversation import converse"]
        lines = [
            "for turn in converse(host, change, $messages, sampling):",
            '    print("you:", turn.message)',
            '    print("plain:", turn.plain.text)',
            '    print("steered:", turn.steered.text)',
        ]
    return python(
        card,
        "import saelab",
        "from saelab.host.host import load_model_of",
        *imports,
        "",
        "run = saelab.Run($RUN)",
        "lm = load_model_of([run])",
        "host = saelab.with_maxima(saelab.Host.of_run(run, lm))",
        "change = saelab.Intervention(",
        "    latents=$latents, op=$op, amount=$strength, unit=$unit,",
        "    positions=$positions, error=$error,",
        ")",
        "sampling = saelab.Sampling(n_tokens=$n_tokens, temperature=$temperature, seed=$seed)",
        *lines,
        messages=[experiment.prompt, *experiment.then],
        **experiment.model_dump(exclude={"chat", "dose", "then"}),
    )
