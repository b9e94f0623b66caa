"""The table of public releases, `releases.yaml`: which files a name means, and what is known."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from saelab.config import Config, UsageError, first_problem
from saelab.sae.row_norm import RowNorm

TABLE = "releases.yaml"
WORD = re.compile(r"\{([a-z0-9]+)(=?)\}")
NUMBER = re.compile(r"0|[1-9]\d{0,8}")


def _texts(value: object) -> object:
    """YAML's numbers as the texts they are written as."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


RANGE = re.compile(r"\{(\d{1,3})\.\.(\d{1,3})\}")
"""Files that are numbered in a row."""
Text = Annotated[str, BeforeValidator(_texts)]
Span = tuple[float, float] | float | str


class Release(Config):
    """A row of the table; see the comment at its beginning."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.{}/-]*$")
    repo: str
    files: tuple[str, ...] = Field(min_length=1)
    optional: tuple[str, ...] = ()
    read: str | None = None
    values: dict[str, Literal["number"] | tuple[Text, ...] | dict[Text, Text]] = Field(
        default_factory=dict
    )
    model: str | None = None
    site: str | None = None
    target: str | None = None
    k: str | int | None = None
    norm: RowNorm | None = None
    fvu: Span | None = None
    l0: Span | None = None
    ce: Span | None = None
    licence: str
    paper: str | None = None
    about: str

    @model_validator(mode="after")
    def _words_are_known(self) -> "Release":
        named = {word for word, _ in WORD.findall(self.name)}
        texts = [self.repo, *self.files, *self.optional, self.read, self.model, self.site]
        used = {w for text in [*texts, self.target] for w, _ in WORD.findall(text or "")}
        if named != set(self.values) or not used <= named:
            odd = (named ^ set(self.values)) | (used - named)
            raise ValueError(f"{self.name}: {', '.join(sorted(odd))} is in its name or values only")
        return self

    def words_of(self, name: str) -> dict[str, str] | None:
        """What the user chose for each word, if `name` is of this row; else None."""
        parts, own = name.split("/"), self.name.split("/")
        if len(parts) != len(own):
            return None
        chosen: dict[str, str] = {}
        for part, pattern in zip(parts, own, strict=True):
            word = WORD.fullmatch(pattern)
            if word is None and part != pattern:
                return None
            if word is not None:
                chosen[word[1]] = part
        return chosen

    def refused(self, chosen: Mapping[str, str]) -> list[str]:
        """The words whose values name nothing."""
        return [
            word
            for word, value in chosen.items()
            if not (
                NUMBER.fullmatch(value)
                if self.values[word] == "number"
                else value in self.values[word]
            )
        ]


@dataclass(frozen=True)
class Known:
    """What is known of one released SAE beside its files; None for what is not.

    Attributes:
        name: by which it was asked for.
        repo: the repository.
        files: what to fetch; the first says which SAE it is.
        optional: what to fetch if it exists.
        read: the file or folder that is read.
        model: the language model; `site` and `target`: what the SAE reads and writes.
        k: latents per row.
        transcoder: whether it is one.
        norm: what is done to each row first.
        scale: the constant by which its rows are multiplied.
        figures: what the release states, as [least, most], of `fvu`, `l0` and `ce`.
        licence, paper: of the release.
    """

    name: str
    repo: str
    files: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    read: str = ""
    model: str | None = None
    site: str | None = None
    target: str | None = None
    k: int | None = None
    transcoder: bool | None = None
    norm: RowNorm | None = None
    scale: float | None = None
    figures: Mapping[str, tuple[float, float]] | None = None
    licence: str | None = None
    paper: str | None = None


@cache
def releases() -> tuple[Release, ...]:
    """The rows of the table.

    Raises:
        UsageError: a row is malformed; the message names it.
    """
    text = files("saelab.sae.interop").joinpath(TABLE).read_text()
    return read_releases(text)


def read_releases(text: str) -> tuple[Release, ...]:
    """The rows in the text of a table; raises UsageError as `releases` does."""
    rows = []
    for row in yaml.safe_load(text):
        try:
            rows.append(Release.model_validate(row))
        except ValidationError as error:
            raise UsageError(f"{TABLE}, {str(row)[:60]!r}: {first_problem(error)}.") from None
    return tuple(rows)


def closest(word: str, words: Iterable[str]) -> list[str]:
    """The most similar words, the best first."""
    return difflib.get_close_matches(word, list(words), 3, cutoff=0.5)


def search(words: Iterable[str]) -> list[Release]:
    """The rows in which every word occurs."""
    wanted = [word.lower() for word in words]
    return [r for r in releases() if all(word in str(r.model_dump()).lower() for word in wanted)]


def find_release(name: str) -> Known:
    """What a name such as `gemma-scope-2/270m-pt/resid/12/16k/medium` means.

    Raises:
        UsageError: no row has this name; the message names the closest row.
    """
    rows = [(row, chosen) for row in releases() if (chosen := row.words_of(name)) is not None]
    refused = [row.refused(chosen) for row, chosen in rows]
    if [] in refused:
        row, chosen = rows[refused.index([])]
        return _known(row, name, chosen)
    if rows:
        fewest = min(refused, key=len)
        near = [row for (row, _), words in zip(rows, refused, strict=True) if words == fewest]
        raise _unnamed(name, fewest[0], rows[0][1][fewest[0]], near)
    first = name.split("/")[0]
    of_first = [row.name for row in releases() if row.name.split("/")[0] == first]
    near = of_first or closest(name, [row.name for row in releases()])
    hint = f"; {' or '.join(dict.fromkeys(near))} is" if near else ""
    raise UsageError(f"{name} is no release{hint}; `saelab import list` shows all.")


def _unnamed(name: str, word: str, value: str, rows: Sequence[Release]) -> UsageError:
    """The error for a word that names nothing in any of these rows."""
    known = [row.values[word] for row in rows]
    values = [each for some in known if some != "number" for each in some]
    problem = (
        f"is none of {', '.join(dict.fromkeys(values))}"
        if values
        else f"is no number, which {{{word}}} must be"
    )
    return UsageError(f"{name}: {value[:40]!r} {problem} ({rows[0].name}).")


def _known(row: Release, name: str, chosen: Mapping[str, str]) -> Known:
    def filled(text: str) -> str:
        def value(found: re.Match[str]) -> str:
            word = chosen[found[1]]
            table = row.values[found[1]]
            return table[word] if found[2] and isinstance(table, dict) else word

        # A value may name words in its turn.
        return WORD.sub(value, WORD.sub(value, text))

    def span(value: Span | None) -> tuple[float, float] | None:
        if isinstance(value, tuple) or value is None:
            return value
        number = float(filled(value)) if isinstance(value, str) else float(value)
        return number, number

    spans = {key: span(getattr(row, key)) for key in ("fvu", "l0", "ce")}
    model, site, target = (
        None if text is None else filled(text) for text in (row.model, row.site, row.target)
    )
    paths = tuple(path for file in row.files for path in numbered(filled(file)))
    return Known(
        name=name,
        repo=filled(row.repo),
        files=paths,
        optional=tuple(filled(file) for file in row.optional),
        read=str(Path(paths[0]).parent) if row.read is None else filled(row.read),
        model=model,
        site=site,
        target=target,
        k=None if row.k is None else int(filled(str(row.k))),
        transcoder=None if target is None else True,
        norm=row.norm,
        figures={key: value for key, value in spans.items() if value is not None},
        licence=row.licence,
        paper=row.paper,
    )


def numbered(path: str) -> list[str]:
    """A path for each number of a range such as {0..17} in it."""
    if (found := RANGE.search(path)) is None:
        return [path]
    numbers = range(int(found[1]), int(found[2]) + 1)
    return [path[: found.start()] + str(n) + path[found.end() :] for n in numbers]
