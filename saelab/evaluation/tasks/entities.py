"""RAVEL's files: entities, their attributes, and templates that ask for an attribute.

A folder holds `ravel_KIND_entity_attributes.json` (entity -> attribute -> value) and
`ravel_KIND_attribute_to_prompts.json` (attribute -> templates with one %s) for each kind of entity.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelab.config import UsageError
from saelab.formats.json_file import canonical_digest, read_object

VALUES, TEMPLATES = "entity_attributes", "attribute_to_prompts"
USUAL = {
    "city": ("Country", "Continent", "Language"),
    "nobel_prize_winner": ("Country of Birth", "Field", "Gender"),
}
"""The attributes that SAEBench measures."""
SLOT = "%s"


@dataclass(frozen=True)
class Entities:
    """Entities of one kind.

    Attributes:
        name: the kind, e.g. city.
        values: by entity, the value of each attribute.
        templates: by attribute, what asks for it; `SLOT` stands for the entity.
    """

    name: str
    values: Mapping[str, Mapping[str, str]]
    templates: Mapping[str, Sequence[str]]

    @property
    def digest(self) -> str:
        """sha256 (hex) of values and templates."""
        return canonical_digest({"values": self.values, "templates": self.templates})


def kinds_of_entities(folder: Path) -> list[str]:
    """The kinds of which the folder has files.

    Raises:
        UsageError: it is no folder, or has none.
    """
    if not folder.is_dir():
        kind = "no folder" if folder.exists() else "not there"
        raise UsageError(f"{folder} is {kind}; --ravel is the folder of RAVEL's files.")
    found = sorted(folder.glob(f"ravel_*_{VALUES}.json"))
    if not found:
        raise UsageError(
            f"{folder} has no file ravel_KIND_{VALUES}.json; --ravel is the folder of RAVEL's "
            "files."
        )
    return [path.name[len("ravel_") : -len(f"_{VALUES}.json")] for path in found]


def read_entities(folder: Path, kind: str, attributes: Sequence[str]) -> Entities:
    """The entities of a kind, with these attributes; by default the known `USUAL` ones, or all.

    Raises:
        UsageError: a file is bad, has no such attribute, or there are fewer than two.
    """
    where = folder / f"ravel_{kind}_{TEMPLATES}.json"
    known = {name: _templates(rows, name, where) for name, rows in read_object(where).items()}
    usual = [name for name in USUAL.get(kind, ()) if name in known]
    wanted = list(dict.fromkeys(attributes or (usual if len(usual) > 1 else known)))
    if missing := [name for name in wanted if name not in known]:
        raise UsageError(f"{where} has no attribute {missing[0]!r}, only {', '.join(known)[:300]}.")
    if len(wanted) < 2:
        raise UsageError(
            f"RAVEL changes one attribute and keeps the others; {kind} needs two, not {wanted}."
        )
    where = folder / f"ravel_{kind}_{VALUES}.json"
    values = {
        e: _values(row, wanted, f"{e[:40]!r} of {where}") for e, row in read_object(where).items()
    }
    return Entities(kind, values, {name: known[name] for name in wanted})


def _templates(rows: Any, name: str, where: Path) -> list[str]:  # noqa: ANN401 - untrusted
    if not isinstance(rows, list) or not all(isinstance(row, str) for row in rows):
        raise UsageError(f"{name[:40]!r} of {where} is no list of texts.")
    for row in rows:
        if row.count(SLOT) != 1:
            raise UsageError(
                f"A template of {name[:40]!r} in {where} has {row.count(SLOT)} times {SLOT}, which "
                f"stands for the entity once: {row[:60]!r}."
            )
    return rows


def _values(row: Any, wanted: Sequence[str], where: str) -> dict[str, str]:  # noqa: ANN401
    """The wanted attributes that the entity has."""
    if not isinstance(row, dict):
        raise UsageError(f"{where} is no object of attributes.")
    found = {}
    for name in wanted:
        value = row.get(name)
        if value is not None and not isinstance(value, str | int | float):
            raise UsageError(f"{name!r} of {where} is no text.")
        if value is not None and str(value).strip():
            found[name] = str(value)
    return found


def says(completion: str, value: str, *, cut: bool = True) -> bool:
    """Whether a completion gives the value, without regard to case and a leading "the".

    Of a value that lists some (`English, French` or `UTC/GMT`), one is enough. What stands behind a
    quotation mark or a line break is another sentence. With `cut`, the completion ends where the
    model was stopped, and may be the beginning of a longer value.
    """
    lines = completion.lstrip(' "').replace("\n", '"').split('"')
    said, whole = _plain(lines[0]), len(lines) == 1
    answers = [_plain(part) for part in (value, *value.replace("/", ",").split(","))]
    if not said:
        return False
    return any(
        _begins(said, answer) or (cut and whole and answer.startswith(said))
        for answer in answers
        if answer
    )


def _begins(said: str, answer: str) -> bool:
    """Whether `said` begins with the whole word or words of `answer`: Niger, not Nigeria."""
    return said.startswith(answer) and not said[len(answer) : len(answer) + 1].isalnum()


def _plain(text: str) -> str:
    return text.strip(' ".').lower().removeprefix("the ").strip()
