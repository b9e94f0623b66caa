"""What a run's latents are called, as one file for other tools: JSON lines, or CSV.

A row is what readers say of a latent (`label`, `note`, `bookmark`), or one explanation of it with
its source, its score and the readers' verdict. A file from elsewhere needs `latent` and either
`label` or `explanation`; its other columns are not read, except `side`, `model` and `verdict`.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import override

from saelab.analysis.explain.prompts import LONGEST_EXPLANATION
from saelab.analysis.explain.records import (
    SIDES,
    Explanation,
    ExplanationSet,
    explanation_sets,
    name_of,
    now,
    read_set,
    set_path,
    set_paths,
)
from saelab.analysis.explain.scores import read_scores
from saelab.analysis.lists import lines_of
from saelab.analysis.notes import LONGEST, Note, Notes, mark_of
from saelab.config import UsageError
from saelab.console import visible
from saelab.files import replace_file
from saelab.formats.csv_file import csv_text, unmarked
from saelab.formats.json_file import parse_json
from saelab.formats.regular import read_regular, utf8
from saelab.lock import check_held
from saelab.training.run import Run

FORMS = ("jsonl", "csv")
COLUMNS = (
    *("latent", "label", "note", "bookmark"),
    *("side", "explanation", "set", "model", "prompt", "at", "score", "judge", "verdict"),
)
READERS_OWN = ("label", "note")
"""Texts that are kept as they are; the app escapes them."""
VERDICTS = {"accepted": "+", "rejected": "-"}
MAX_BYTES = 2**28
MAX_LINE_VALUES = 1000
KIND, PROMPT, ELSEWHERE = "import", "written elsewhere", "elsewhere"
_TEXTS = {name: LONGEST[name] for name in (*READERS_OWN, "verdict")}
_TEXTS |= {"explanation": LONGEST_EXPLANATION, "model": 200, "side": 10}
Row = dict[str, Any]


def form_of(path: Path) -> str:
    """The form of a file, by its suffix.

    Raises:
        UsageError: it is neither .jsonl nor .csv.
    """
    form = path.suffix.lower().removeprefix(".")
    if form not in FORMS:
        raise UsageError(f"{path} is neither .jsonl nor .csv; these are the forms of names.")
    return form


def names_of(run: Path) -> Iterator[Row]:
    """The rows of a run, by latent; values that it lacks are left out.

    Raises:
        UsageError: its notes, a set of explanations or its scores are damaged.
    """
    notes = Notes(run).all()
    rows = [_noted(latent, note) for latent, note in notes.items()]
    for texts in explanation_sets(run):
        rows += _explained(texts, notes)
    rows = [row for row in rows if len(row) > 1]
    return iter(sorted(rows, key=lambda row: row["latent"]))


def _noted(latent: int, note: Note) -> Row:
    row = {"latent": latent, "label": note.label, "note": note.note, "bookmark": note.bookmark}
    return {name: value for name, value in row.items() if value or name == "latent"}


def _explained(texts: ExplanationSet, notes: Mapping[int, Note]) -> Iterator[Row]:
    judges = [read_scores(file) for file in sorted(texts.path.glob("scores_*.json"))]
    for latent, one in texts.by_latent.items():
        note, mark = notes.get(latent, Note()), mark_of(texts.side, one.text)
        scores = [(s, j.judge) for j in judges if (s := j.score(latent)) is not None]
        row = {
            "latent": latent,
            "side": texts.side,
            "explanation": one.text,
            "set": texts.name,
            "model": texts.model,
            "prompt": texts.prompt,
            "at": one.at,
        }
        # As in the app, the judge who thinks least of it.
        row |= dict(zip(("score", "judge"), min(scores), strict=True)) if scores else {}
        said = [word for word in VERDICTS if mark in getattr(note, word)]
        yield row | dict(zip(["verdict"], said, strict=False))


def written_names(rows: Iterable[Row], form: str) -> bytes:
    """The file of these rows."""
    if form == "jsonl":
        lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
        return "".join(f"{line}\n" for line in lines).encode()
    found = ({**row, "bookmark": "1" if row.get("bookmark") else ""} for row in rows)
    return csv_text([COLUMNS, *([row.get(name) for name in COLUMNS] for row in found)]).encode()


def write_names(path: Path, run: Path) -> int:
    """Write the names of a run to `path`, whole or not at all; returns the number of rows."""
    rows = list(names_of(run))
    replace_file(path, lambda file: file.write(written_names(rows, form_of(path))))
    return len(rows)


def read_names(path: Path) -> list[Row]:
    """The checked rows of a file; raises as `parsed_names`."""
    return parsed_names(read_regular(path, most=MAX_BYTES), form_of(path), str(path))


def parsed_names(raw: bytes, form: str, name: str) -> list[Row]:
    """The checked rows of a file's content.

    Raises:
        UsageError: a line is no row; the message says which, and why.
    """
    text = utf8(raw, name)
    lines = _of_csv(text, name) if form == "csv" else _of_json(text, name)
    rows = [_checked(values, where) for where, values in lines]
    if not rows:
        raise UsageError(f"{name} holds no names.")
    return rows


def _of_json(text: str, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        where = f"Line {number} of {name}"
        if line.strip():
            values = parse_json(line.encode(), where, max_values=MAX_LINE_VALUES)
            if not isinstance(values, dict):
                raise UsageError(f"{where} is no JSON object.")
            yield where, values


def _of_csv(text: str, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    if "latent" not in (reader.fieldnames or ()):
        raise UsageError(f"{name} has no column `latent`; its first line names the columns.")
    try:
        for values in reader:
            where = f"Line {reader.line_num} of {name}"
            if None in values:
                raise UsageError(f"{where} has more values than there are columns.")
            yield where, {n: unmarked(v) if isinstance(v, str) else v for n, v in values.items()}
    except csv.Error as error:
        raise UsageError(f"Line {reader.line_num} of {name} is no CSV: {error}.") from None


def _checked(values: Mapping[str, Any], where: str) -> Row:
    if unknown := [name for name in values if name not in COLUMNS]:
        raise UsageError(
            f"{where} has the field {unknown[0][:40]!r}; known are {', '.join(COLUMNS)}."
        )
    latent = values.get("latent")
    if isinstance(latent, str) and latent.strip().isdecimal() and len(latent) < 11:
        latent = int(latent)
    if type(latent) is not int or not 0 <= latent < 2**31:
        raise UsageError(f"{where} names no latent: {str(latent)[:40]!r}; give its number.")
    row: Row = {"latent": latent, "bookmark": values.get("bookmark") in (True, "1", "true", "True")}
    row |= {name: _text(values.get(name), name, where) for name in _TEXTS}
    row["side"] = row["side"] or SIDES[0]
    for name, known in (("side", SIDES), ("verdict", ("", *VERDICTS))):
        if row[name] not in known:
            raise UsageError(f"{where} has the {name} {row[name]!r}; known are {', '.join(known)}.")
    if row["verdict"] and not row["explanation"]:
        raise UsageError(f"{where} has a verdict without an explanation.")
    return row


def _text(value: object, name: str, where: str) -> str:
    text = value or ""
    if isinstance(text, str) and text and name not in READERS_OWN:
        text = visible(" ".join(text.strip().splitlines()))
    if not isinstance(text, str) or len(text) > _TEXTS[name]:
        raise UsageError(
            f"{where} has a {name} that is no text of up to {_TEXTS[name]} characters."
        )
    # Files of older versions have labels of several lines.
    return " ".join(lines_of(text)) if name == "label" else text.strip()


@dataclass(frozen=True)
class ImportedNames:
    """What an import has changed: texts of readers, verdicts, and new explanations."""

    n_notes: int
    n_verdicts: int
    n_explanations: int

    @override
    def __str__(self) -> str:
        return (
            f"{self.n_notes} labels, notes and bookmarks, {self.n_verdicts} verdicts and "
            f"{self.n_explanations} explanations are new; scores are measured, not read"
        )


def import_names(run: Run, rows: Sequence[Row]) -> ImportedNames:
    """Enter the rows that the run lacks; nothing of it is lost. Hold its lock (`writing`).

    Explanations that the run lacks make a set for each model and side, of the kind `import`.

    Raises:
        UsageError: the SAE has no such latent, a latent has two labels, or a set of that name has
            other texts; then nothing is entered.
    """
    n = int(run.options["sae"]["d_sae"])
    for row in rows:
        if row["latent"] >= n:
            raise UsageError(f"There is no latent {row['latent']}; the SAE has 0 to {n - 1}.")
    _check_once(rows)
    sets, n_new = _new_sets(run, [row for row in rows if row["explanation"]])
    noted, verdicts = _edits(Notes(run.path).all(), rows)
    check_held(run.path)
    for texts in sets:
        texts.write()
    Notes(run.path).write_all([*noted, *verdicts])
    return ImportedNames(len(noted), len(verdicts), n_new)


def _check_once(rows: Sequence[Row]) -> None:
    """Refuse two labels, or two notes, of one latent."""
    seen: dict[tuple[int, str], str] = {}
    for row in rows:
        for field in READERS_OWN:
            text = row[field]
            before = seen.setdefault((row["latent"], field), text) if text else text
            if before != text:
                raise UsageError(
                    f"Latent {row['latent']} has two {field}s, {before[:40]!r} and {text[:40]!r}; "
                    "leave one."
                )


Edits = list[tuple[int, str, str]]


def _edits(notes: Mapping[int, Note], rows: Sequence[Row]) -> tuple[Edits, Edits]:
    noted, verdicts = [], []
    for row in rows:
        latent, there = row["latent"], notes.get(row["latent"], Note())
        said = [field for field in READERS_OWN if row[field] not in ("", getattr(there, field))]
        noted += [(latent, field, row[field]) for field in said]
        if row["bookmark"] and not there.bookmark:
            noted.append((latent, "bookmark", "1"))
        mark = mark_of(row["side"], row["explanation"])
        if row["verdict"] and mark not in getattr(there, row["verdict"]):
            verdicts.append((latent, "verdict", f"{VERDICTS[row['verdict']]}{mark}"))
    return list(dict.fromkeys(noted)), list(dict.fromkeys(verdicts))


def _new_sets(run: Run, rows: Sequence[Row]) -> tuple[list[ExplanationSet], int]:
    """The sets that the run will have of explanations that it lacks, and how many these are."""
    there = {
        (latent, texts.side, one.text)
        for texts in map(read_set, set_paths(run.path))
        for latent, one in texts.by_latent.items()
    }
    sets: dict[tuple[str, str], ExplanationSet] = {}
    n = 0
    for row in rows:
        latent, side, text = row["latent"], row["side"], row["explanation"]
        if (latent, side, text) in there:
            continue
        key = (row["model"] or ELSEWHERE, side)
        texts = sets.get(key) or sets.setdefault(key, _set_of(run, *key))
        texts.by_latent[latent] = Explanation(text, now())
        n += 1
    return list(sets.values()), n


def _set_of(run: Run, model: str, side: str) -> ExplanationSet:
    path = set_path(run.path, f"{name_of(model)[:40]}-{side}-imported")
    if path not in set_paths(run.path):
        return ExplanationSet(path, model, KIND, PROMPT, run.weights_sha256, side=side)
    texts = read_set(path)
    if (texts.kind, texts.model, texts.side) != (KIND, model, side):
        raise UsageError(f"{path} holds explanations by {texts.model}; move it away.")
    return texts
