"""What a run keeps of explanations: a directory for each set of them.

    explanations/NAME/explanations.json   texts by one model from one version of the prompt
    explanations/NAME/scores_JUDGE.json   how well they predict, by one judge
    explanations/NAME/asked.jsonl         answers of an unfinished set (removed when it ends)
    explanations/NAME/judged_JUDGE.jsonl  the same of unfinished scores

A latent may have an explanation in each set. Several sets stand beside each other.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from saelab.analysis.explain.prompts import LONGEST_EXPLANATION
from saelab.config import UsageError
from saelab.console import visible
from saelab.formats.json_file import read_sealed_json, write_sealed_json

DIRECTORY = "explanations"
TEXTS = "explanations.json"
FORMAT = "saelab-explanations/1"
MOST_LATENTS = 2**20
MAX_VALUES = 8 * MOST_LATENTS
MAX_TEXTS_BYTES = 2**29
LONGEST_FACT = 200
MOST_SETS = 100
SIDES = ("input", "output")
"""What makes a latent fire, and what it does to what the model writes."""
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,59}")
_COLUMNS = ("latents", "texts", "at", "prompt_tokens", "completion_tokens")


@dataclass(frozen=True)
class Explanation:
    """What a model says of a latent.

    Attributes:
        text: one line.
        at: when it was answered (ISO 8601, UTC).
        prompt_tokens, completion_tokens: what it cost; 0 where unknown.
    """

    text: str
    at: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass
class ExplanationSet:
    """A run's explanations by one model.

    Attributes:
        path: its directory; its name is the set's.
        model: the model that explained.
        kind: the client: `endpoint`, `local`, `file`, `tokens` (no model), or `import` (texts
            that were written elsewhere).
        prompt: version of the prompt.
        sae_sha256: digest of the weights that the latents belong to.
        requests, tokens: what its finished parts cost together, failures included; the cost of
            an unfinished one is in its ledger.
        side: which of SIDES it explains.
        by_latent: the explanations.
    """

    path: Path
    model: str
    kind: str
    prompt: str
    sae_sha256: str
    requests: int = 0
    tokens: int = 0
    side: str = "input"
    by_latent: dict[int, Explanation] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the set."""
        return self.path.name

    def write(self) -> None:
        """Write it into the run, whole or not at all."""
        latents = sorted(self.by_latent)
        found = [self.by_latent[latent] for latent in latents]
        write_sealed_json(
            self.path / TEXTS,
            {
                "format": FORMAT,
                "made": {"sae_sha256": self.sae_sha256},
                "model": self.model,
                "client": self.kind,
                "side": self.side,
                "prompt": self.prompt,
                "cost": {"requests": self.requests, "tokens": self.tokens},
                "latents": latents,
                "texts": [e.text for e in found],
                "at": [e.at for e in found],
                "prompt_tokens": [e.prompt_tokens for e in found],
                "completion_tokens": [e.completion_tokens for e in found],
            },
        )


def now() -> str:
    """The time, as an explanation has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def set_path(run: Path, name: str) -> Path:
    """The directory of the set called `name`.

    Raises:
        UsageError: it is no name for a set.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name of explanations: take up to 60 of a-z, 0-9, '.', '_' and '-', "
            "the first a letter or a digit."
        )
    return run / DIRECTORY / name


def name_of(model: str) -> str:
    """The name of a model's set: its last part, in small letters."""
    last = model.rstrip("/").rpartition("/")[2].lower()
    return re.sub(r"[^a-z0-9._-]+", "-", last).strip("-._")[:60] or "model"


def set_paths(run: Path) -> list[Path]:
    """The directories of a run's finished sets, by name."""
    return sorted(path.parent for path in (run / DIRECTORY).glob(f"*/{TEXTS}"))[:MOST_SETS]


def explanation_sets(run: Path) -> Iterator[ExplanationSet]:
    """The run's sets, by name; raises as `read_set`."""
    return map(read_set, set_paths(run))


def read_set(path: Path) -> ExplanationSet:
    """The set in the directory `path`.

    Raises:
        UsageError: its file is missing or damaged.
    """
    file = path / TEXTS
    values = read_sealed_json(file, most=MAX_TEXTS_BYTES, max_values=MAX_VALUES)
    if values.get("format") != FORMAT:
        raise UsageError(
            f"{file} has the format {str(values.get('format'))[:60]!r}, this saelab reads "
            f"{FORMAT!r}."
        )
    cost = mapping(values, "cost", file)
    found = ExplanationSet(
        path,
        model=fact(values, "model", file),
        kind=fact(values, "client", file),
        prompt=fact(values, "prompt", file),
        sae_sha256=fact(mapping(values, "made", file), "sae_sha256", file),
        # Sets of earlier versions are all of the input side.
        side=fact(values, "side", file) if "side" in values else "input",
        requests=whole(cost, "requests", file),
        tokens=whole(cost, "tokens", file),
    )
    if found.side not in SIDES:
        raise damaged(file, f"its side is none of {', '.join(SIDES)}")
    columns = [column(values, name, file) for name in _COLUMNS]
    if len({len(values) for values in columns}) > 1:
        raise damaged(file, "its columns have different lengths")
    for latent, *rest in zip(*columns, strict=True):
        found.by_latent[_latent(latent, file)] = _explanation(rest, file)
    return found


def damaged(file: Path, why: str) -> UsageError:
    """The error of a file whose values are not what they should be."""
    return UsageError(f"{file} is damaged: {why}; make it again.")


def fact(values: Mapping[str, Any], name: str, file: Path) -> str:
    """A short text of a file, on one line."""
    text = values.get(name)
    if not isinstance(text, str) or len(text) > LONGEST_FACT:
        raise damaged(file, f"its {name} is no short text")
    return visible(text)


def mapping(values: Mapping[str, Any], name: str, file: Path) -> dict[str, Any]:
    """An object of a file."""
    found = values.get(name)
    if not isinstance(found, dict):
        raise damaged(file, f"it has no {name}")
    return found


def whole(values: Mapping[str, Any], name: str, file: Path) -> int:
    """A count of a file."""
    number = values.get(name)
    if type(number) is not int or number < 0:
        raise damaged(file, f"its {name} is no count")
    return number


def column(values: Mapping[str, Any], name: str, file: Path) -> Sequence[Any]:
    """A list of a file, with a value for each latent."""
    found = values.get(name)
    if not isinstance(found, list) or len(found) > MOST_LATENTS:
        raise damaged(file, f"its {name} is no list")
    return found


def _latent(value: object, file: Path) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise damaged(file, "it names what is no latent")
    return value


def _explanation(values: Sequence[Any], file: Path) -> Explanation:
    text, at, *counts = values
    if not isinstance(text, str) or len(text) > LONGEST_EXPLANATION:
        raise damaged(file, f"an explanation is no text of up to {LONGEST_EXPLANATION} characters")
    if not isinstance(at, str) or len(at) > LONGEST_FACT:
        raise damaged(file, "a date is no text")
    if any(type(n) is not int or n < 0 for n in counts):
        raise damaged(file, "a count of tokens is none")
    return Explanation(visible(text), visible(at), *counts)
