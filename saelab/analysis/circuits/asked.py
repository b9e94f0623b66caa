"""What somebody asks a graph to explain: a token or a latent, by name."""

from collections.abc import Sequence
from typing import Any

from saelab.analysis.circuits.frozen import Frozen
from saelab.analysis.circuits.targets import (
    Target,
    latent_target,
    logit_target,
    next_token_probabilities,
)
from saelab.config import UsageError
from saelab.host.host import Host
from saelab.lm.prompt import token_id
from saelab.lm.protocol import LanguageModel


def asked_target(
    lm: LanguageModel,
    frozen: Frozen,
    tokens: tuple[str | None, str | None],
    latent: str | None = None,
) -> tuple[Target, dict[str, Any]]:
    """What is to be explained, and the facts of it that a graph states.

    Args:
        lm: the model.
        frozen: the prompt.
        tokens: the names of a token and of the one that it is compared with; the most likely one
            and the mean, if None.
        latent: SAE:NUMBER or SAE:NUMBER@POSITION, instead.

    Raises:
        UsageError: there is no such token or latent, or both were given.
    """
    wanted, other = tokens
    if latent is not None:
        if wanted is not None or other is not None:
            raise UsageError("Got a latent and a token to explain; give one of them.")
        target = _latent_target(frozen, latent)
        return target, {"target": target.label, "latent": latent}
    probabilities = next_token_probabilities(frozen)
    token = int(probabilities.argmax()) if wanted is None else token_id(lm, wanted)
    against = None if other is None else token_id(lm, other)
    target = logit_target(frozen, token, against)
    words = [lm.tokenizer.token(i) for i in (token, *([] if against is None else [against]))]
    label = f"logit {words[0]!r} - " + (f"logit {words[1]!r}" if len(words) > 1 else "mean logit")
    facts = {
        "target": label,
        "token": token,
        "against": against,
        "probability": float(probabilities[token]),
    }
    return target, facts


def check_number(hosts: Sequence[Host], text: str) -> None:
    """Refuse SAE:NUMBER with a number that the SAE does not have.

    Raises:
        UsageError: it has fewer latents.
    """
    name, _, place = text.rpartition(":")
    latent = place.partition("@")[0]
    for d_sae in (host.sae.d_sae for host in hosts if host.name == name):
        if latent.isdecimal() and int(latent) >= d_sae:
            raise UsageError(
                f"{name} has {d_sae} latents, so it has no latent {latent}; give 0 to {d_sae - 1}."
            )


def _latent_target(frozen: Frozen, text: str) -> Target:
    """The latent named by SAE:NUMBER or SAE:NUMBER@POSITION."""
    name, _, place = text.rpartition(":")
    latent, at, position = place.partition("@")
    numbers = {active.name: number for number, active in enumerate(frozen.actives)}
    if name not in numbers or not latent.isdecimal() or bool(at) != position.isdecimal():
        raise UsageError(
            f"{text!r} names no latent; write SAE:NUMBER or SAE:NUMBER@POSITION with an SAE of "
            f"{', '.join(numbers)}."
        )
    codes = frozen.actives[numbers[name]].codes
    fires = codes.row[codes.latent == int(latent)].tolist()
    if not at and not fires:
        raise UsageError(f"Latent {latent} of {name} does not fire on the prompt; give another.")
    return latent_target(frozen, numbers[name], int(latent), int(position) if at else max(fires))
