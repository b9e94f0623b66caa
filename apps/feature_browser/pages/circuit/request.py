"""What a reader asks to be explained: the fields of the form as a request for the queue."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feature_browser.data.catalogue import Catalogue, RunCard
from feature_browser.data.reading import open_run
from feature_browser.pages.circuit.address import CircuitAddress, range_of
from saelab.config import UsageError
from saelab.console import visible
from saelab.lm.prompt import LONGEST
from saelab.training.run import Run
from saelab.training.sets import RunSet, is_set

BETWEEN_SAES = "|"
SHOWN = 60
"""Characters of a prompt in the list of jobs."""


@dataclass(frozen=True)
class Choice:
    """SAEs that can be chosen together: a run's, or those of a set.

    Attributes:
        name: in the address; a set's begins with "set ".
        title: what the form shows.
    """

    name: str
    title: str
    path: Path


def choices(catalogue: Catalogue, card: RunCard) -> dict[str, Choice]:
    """What can be chosen on this run's page, by name: its set, itself, other runs of its model."""
    found = []
    if is_set(card.path.parent):
        name = f"set {card.path.parent.resolve().name}"
        found.append(Choice(name, f"the whole {name}", card.path.parent))
    others = [
        other
        for other in catalogue.runs.values()
        if other.model == card.model and other.name != card.name and other.in_circuits
    ]
    found += [Choice(run.name, f"{run.name} · {run.site}", run.path) for run in [card, *others]]
    return {choice.name: choice for choice in found}


def chosen(known: dict[str, Choice], text: str) -> list[str]:
    """The names in `?saes=` that are known; if there are none, the first of all."""
    names = [name for name in text.split(BETWEEN_SAES) if name in known]
    return names or list(known)[:1]


def names_of(known: dict[str, Choice], paths: set[Path]) -> list[str]:
    """The choices that stand for the runs at these paths: a whole set, or the runs."""
    for choice in known.values():
        if is_set(choice.path) and set(_members(choice.path)) == paths:
            return [choice.name]
    return [choice.name for choice in known.values() if choice.path.resolve() in paths]


def _members(path: Path) -> list[Path]:
    try:
        return [(path / member.name).resolve() for member in RunSet(path).manifest.members]
    except UsageError:  # Its own page says what is wrong with it.
        return []


def prompt_of(card: RunCard, address: CircuitAddress) -> str:
    """The prompt that the address gives: its text, or an example's text up to a position.

    Raises:
        UsageError: there is no such example, or features.h5 is damaged.
    """
    place = range_of(address.example)
    if address.prompt or place is None:
        return address.prompt
    context, position = (int(part) for part in address.example.split("-"))
    file = open_run(card).features.file
    texts = file["corpus/tokens"]
    ids = texts[context].tolist() if 0 <= context < len(texts) else []
    if not 0 <= position < len(ids) or ids[position] < 0:
        raise UsageError(f"{card.name} has no example at {position} of text {context}.")
    model = Run(card.path).provenance().get("model")
    bos = model.get("bos_token_id") if isinstance(model, dict) else None
    line = ids[: position + 1]
    return file.table.text(line[1:] if line and line[0] == bos else line)


def request_of(address: CircuitAddress, paths: Sequence[Path]) -> dict[str, Any]:
    """The request that `live.worker` reads.

    Raises:
        UsageError: a field is missing, or two contradict each other.
    """
    if not address.prompt.strip():
        raise UsageError("There is no prompt; type the text whose next token is to be explained.")
    if len(address.prompt) > LONGEST:
        raise UsageError(f"The prompt has more than {LONGEST} characters; shorten it.")
    if not paths:
        raise UsageError("No SAE is chosen; choose a set or at least one run.")
    if address.wanted.strip() and (address.target.strip() or address.against.strip()):
        raise UsageError("Give a token or a latent to be explained, not both.")
    if address.against.strip() and not address.target.strip():
        raise UsageError("The second token needs a first one: give both, or neither.")
    options = {
        "target": address.target or None,
        "against": address.against or None,
        "latent": address.wanted.strip() or None,
        "max_nodes": int(address.limit),
        # The page shows no second circuit, which costs most of the time.
        "n_members": 0,
    }
    runs = [str(path) for path in paths]
    return {"runs": runs, "prompt": address.prompt, "chat": bool(address.chat), "options": options}


def title_of(address: CircuitAddress) -> str:
    """What the list of jobs says."""
    text = visible(address.prompt.strip())
    short = text if len(text) <= SHOWN else f"… {text[-SHOWN:]}"
    against = f" against {address.against}" if address.against else ""
    what = address.wanted or f"{address.target or 'the next token'}{against}"
    return f"“{short}” → {visible(what)}"
