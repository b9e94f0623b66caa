"""Labelled texts: files of your own, or those of the package sae-probes."""

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from saelab.config import UsageError
from saelab.console import note
from saelab.formats.json_file import parse_json
from saelab.formats.regular import read_regular, utf8

MAX_BYTES = 2**31
MOST_CHARACTERS = 2**24
"""Largest number of characters of a text."""
MOST_CLASSES = 1000
LEAST = 10
"""Fewest texts of a class in each half."""
ROWS = (".jsonl", ".ndjson")
TABLES = (".csv", ".tsv")


@dataclass(frozen=True)
class LabelledTexts:
    """Distinct texts, each with a value of every label.

    Attributes:
        name: for results.
        texts: no text occurs twice, so that none is both fitted and scored.
        values: by label, the value of each text.
        n_repeated: rows that were left out because their text had occurred before.
    """

    name: str
    texts: list[str]
    values: Mapping[str, list[str]]
    n_repeated: int

    @property
    def digest(self) -> str:
        """sha256 (hex) of all texts and values, in order."""
        found = hashlib.sha256()
        for row in zip(self.texts, *self.values.values(), strict=True):
            for part in row:
                found.update(f"{len(part)}:".encode() + part.encode())
        return found.hexdigest()

    def classes(self, label: str) -> list[str]:
        """The values of a label, sorted; at least two.

        Raises:
            UsageError: there is one class only, or too many.
        """
        found = sorted(set(self.values[label]))
        if len(found) < 2:
            only = found[0][:40] if found else "none"
            raise UsageError(
                f"{self.name} has one class only ({only!r} of {label!r}), and a probe needs two; "
                "add texts of another, or name another field by --label-field."
            )
        if len(found) > MOST_CLASSES:
            raise UsageError(
                f"{self.name} has {len(found)} classes of {label!r}, and at most {MOST_CLASSES} "
                "are probed; name the field of the label by --label-field."
            )
        return found


def read_labelled(path: Path, text_field: str, label_fields: Sequence[str]) -> LabelledTexts:
    """The labelled texts of a CSV, TSV or JSONL file.

    Raises:
        UsageError: it is no such file, or a row lacks a field; the message gives the line.
    """
    kind = path.suffix.lower()
    if kind not in (*ROWS, *TABLES):
        raise UsageError(
            f"{path} is no file of labelled texts; give one that ends in .csv, .tsv or .jsonl."
        )
    raw = read_regular(path, most=MAX_BYTES)
    rows = json_rows(raw, path) if kind in ROWS else csv_rows(raw, path, tab=kind == ".tsv")
    return labelled(path.stem, rows, text_field, label_fields)


def labelled(
    name: str,
    rows: Iterable[tuple[str, Mapping[str, Any]]],
    text_field: str,
    label_fields: Sequence[str],
) -> LabelledTexts:
    """The distinct texts of some rows, each given with its place for messages.

    Raises:
        UsageError: a row lacks a field, or there is no row.
    """
    seen: dict[str, None] = {}
    values: dict[str, list[str]] = {label: [] for label in label_fields}
    n = 0
    for where, row in rows:
        text = _field(row, text_field, where)
        found = [_field(row, label, where) for label in label_fields]
        n += 1
        if text in seen:
            continue
        seen[text] = None
        for label, value in zip(label_fields, found, strict=True):
            values[label].append(value)
    if not n:
        raise UsageError(f"{name} has no labelled text; each of its rows gives a text and a label.")
    repeated = n - len(seen)
    if repeated:
        note(f"{name}: {repeated} of {n} rows repeat an earlier text; they are left out.")
    return LabelledTexts(name, list(seen), values, repeated)


def _field(row: Mapping[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if isinstance(value, bool | int | float):
        return str(value)
    if isinstance(value, str) and value.strip():
        return value
    if name not in row:
        known = ", ".join(key[:30] for key in list(row)[:8])
        raise UsageError(
            f"{where} has no field {name!r}, only {known}; name it by --text-field or "
            "--label-field."
        )
    raise UsageError(f"{where} has no text or number in its field {name!r}.")


def json_rows(raw: bytes, path: Path | str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The JSON objects of the lines, each with its place."""
    for number, line in enumerate(raw.splitlines(), 1):
        if not line.strip():
            continue
        where = f"Line {number} of {path}"
        row = parse_json(line, where)
        if not isinstance(row, dict):
            raise UsageError(f"{where} is no JSON object.")
        yield where, row


def csv_rows(
    raw: bytes, path: Path | str, *, tab: bool = False
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of a table whose first line names the columns, each with its place.

    Raises:
        UsageError: it is not UTF-8, or a row has more or fewer values than there are columns.
    """
    text = utf8(raw, path)
    before = csv.field_size_limit(MOST_CHARACTERS)
    try:
        lines = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if tab else ",")
        head = next(lines, [])
        if len(set(head)) < len(head):
            raise UsageError(f"{path} has two columns of one name; rename one.")
        for row in lines:
            where = f"Line {lines.line_num} of {path}"
            if not row:
                continue
            if len(row) != len(head):
                raise UsageError(
                    f"{where} has {len(row)} values, and there are {len(head)} columns; a text "
                    "with commas or line breaks needs quotes around it."
                )
            yield where, dict(zip(head, row, strict=True))
    except csv.Error as error:
        raise UsageError(f"{path} is no CSV: {error}.") from None
    finally:
        csv.field_size_limit(before)


def joined(first: LabelledTexts, second: LabelledTexts) -> LabelledTexts:
    """The texts that both have, with the only label of each.

    Raises:
        UsageError: they share no text.
    """
    (own,), (other,) = first.values.values(), second.values.values()
    place = {text: i for i, text in enumerate(second.texts)}
    both = [(i, place[text]) for i, text in enumerate(first.texts) if text in place]
    if not both:
        raise UsageError(
            f"{first.name} and {second.name} share no text, so no text has both labels."
        )
    values = {first.name: [own[i] for i, _ in both], second.name: [other[j] for _, j in both]}
    texts = [first.texts[i] for i, _ in both]
    return LabelledTexts(f"{first.name}+{second.name}", texts, values, 0)


@dataclass(frozen=True)
class Drawn:
    """Texts drawn so that all groups are equally frequent in each half.

    Attributes:
        texts: the texts, mixed.
        group: of each text, as an index of the groups.
        fit: which are fitted on; the others are scored.
    """

    texts: list[str]
    group: Int[Tensor, " text"]
    fit: Bool[Tensor, " text"]


def draw(
    texts: Sequence[str],
    group: Sequence[int],
    names: Sequence[str],
    *,
    n_train: int,
    n_test: int,
    seed: int,
) -> Drawn:
    """As many texts of every group, at most `n_train` and `n_test` over all groups.

    If a group has fewer, a fifth of what the rarest has is scored.

    Raises:
        UsageError: a group has too few texts; the message names it.
    """
    counts = Counter(group)
    rarest = min(range(len(names)), key=lambda each: counts[each])
    train, test = n_train // len(names), n_test // len(names)
    if counts[rarest] < train + test:
        test = min(test, max(LEAST, counts[rarest] // 5))
        train = min(train, counts[rarest] - test)
    if min(train, test) < LEAST:
        raise UsageError(
            f"{names[rarest]!r} has {counts[rarest]} texts, of {n_train} + {n_test} that "
            f"{len(names)} groups share; each needs {LEAST} to fit and {LEAST} to score: give more "
            "texts, fewer classes, or a larger --n-train and --n-test."
        )
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    taken: Counter[int] = Counter()
    chosen, fit = [], []
    for i in order:
        place = taken[group[i]]
        if place < train + test:
            taken[group[i]] += 1
            chosen.append(i)
            fit.append(place < train)
    groups = torch.tensor([group[i] for i in chosen])
    return Drawn([str(texts[i]) for i in chosen], groups, torch.tensor(fit))


def balanced(
    drawn: Drawn, i: int, seed: int
) -> tuple[Int[Tensor, " train"], Int[Tensor, " test"], Bool[Tensor, " text"]]:
    """Texts of class `i` with as many of the others, equally many of each where that can be.

    Returns the indices to fit, those to score, and which of all texts are of the class.
    """
    label = drawn.group == i
    generator = torch.Generator().manual_seed(seed)
    halves = []
    for which in (drawn.fit, ~drawn.fit):
        own = (label & which).nonzero()[:, 0]
        others = (~label & which).nonzero()[:, 0]
        others = others[torch.randperm(len(others), generator=generator)]
        # The texts' place in their class, so that the first of each class come first.
        turn = torch.stack([drawn.group[others] == j for j in range(int(drawn.group.max()) + 1)])
        order = (turn.cumsum(dim=1) * turn).sum(dim=0).sort(stable=True).indices
        both = torch.cat([own, others[order[: len(own)]]])
        halves.append(both[torch.randperm(len(both), generator=generator)])
    return halves[0], halves[1], label
