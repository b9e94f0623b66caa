"""Labels, roles and chat templates of a text, as an `Annotator`."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray
from pydantic import JsonValue

from saelab.activations.annotate import LABELS, ROW
from saelab.activations.documents import TEXT_FIELD, Document, Origin, clean
from saelab.activations.format import JsonObject
from saelab.activations.labelled_rows import RowReader
from saelab.activations.labels import MOST_LABELS, check_label_names
from saelab.activations.marks import (
    DESCRIPTIONS,
    Mark,
    Value,
    descriptions_of,
    shown,
    token_table,
)
from saelab.config import UsageError
from saelab.lm.chat import TEMPLATE
from saelab.lm.protocol import Tokenizer

PEEKED = 100
"""Number of rows searched for labels and messages if no option asks for them."""
STREAMED = 10_000
"""Number of rows of a stream that are searched for the names of its labels."""


def annotator_for(
    documents: Callable[[], Iterator[Document]],
    tokenizer: Tokenizer,
    *,
    labels: Sequence[str],
    roles: Sequence[str],
    text_field: str = TEXT_FIELD,
    stream: bool = False,
) -> "Labelled | None":
    """The annotator of these documents; None if they have nothing to annotate.

    Args:
        documents: all documents of the source, read without a text field.
        tokenizer: the tokenizer whose chat template renders messages.
        labels: names of fields that are labels, a JSONL file of labels, or "none". The rows' own
            `labels` and `spans` are read too, except with "none".
        roles: roles of conversations whose tokens get rows; empty for all tokens, the template's
            included.
        text_field: the field that holds the text, if there is one.
        stream: whether the documents may be endless.

    Raises:
        UsageError: a label or a message is invalid.
    """
    reader = RowReader(tokenizer, tuple(labels), tuple(roles), text_field)
    if not labels and not roles and not _any_marked(documents(), reader, 1 if stream else PEEKED):
        return None
    found = Labelled(reader, documents, stream=stream)
    found.scan()
    return found


def _any_marked(documents: Iterator[Document], reader: RowReader, most: int) -> bool:
    for document in islice(documents, most):
        if document.text:
            return False  # files of rows come first
        if reader.is_marked(document):
            return True
    return False


class Labelled:
    """Documents with named labels.

    Implements `Annotator`.
    """

    def __init__(
        self, reader: RowReader, documents: Callable[[], Iterator[Document]], *, stream: bool
    ) -> None:
        self._reader, self._documents, self._stream = reader, documents, stream
        self._fields: dict[str, dict[Value, None]] = {}
        self._roles: dict[str, None] = {}
        self._descriptions: dict[str, str] = {}
        self._columns: dict[str, int] = {}
        self._digest = ""
        self._lock = threading.Lock()
        self._recorded: Callable[[], None] | None = None

    @classmethod
    def recorded(
        cls,
        facts: object,
        documents: Callable[[], Iterator[Document]],
        tokenizer: Tokenizer,
        text_field: str,
        *,
        changed: str,
    ) -> "Labelled | None":
        """The annotator with these `facts`; None if they describe none.

        The documents are read again at the first use. `changed` is the error if their labels differ
        from the recorded ones.
        """
        if not isinstance(facts, dict):
            return None
        labels, roles, names = (_texts(facts.get(key)) for key in ("labels", "roles", "names"))
        reader = RowReader(tokenizer, labels, roles, text_field)
        found = cls(reader, documents, stream=facts.get("stream") is True)
        found._columns = {name: i for i, name in enumerate(names)}
        told = facts.get("descriptions")
        found._descriptions = (
            {str(k): str(v) for k, v in told.items()} if isinstance(told, dict) else {}
        )

        def check() -> None:
            again = cls(reader, documents, stream=found._stream)
            again.scan()
            if again.facts != facts:
                raise UsageError(changed)

        found._recorded = check
        return found

    def _checked(self) -> RowReader:
        """The reader, after a check that the labels still match the facts."""
        with self._lock:
            if self._recorded is not None:
                self._recorded()
                self._recorded = None
        return self._reader

    def scan(self) -> None:
        """Find all names; check every label."""
        reader, digest = self._reader, hashlib.sha256()
        for number, document in enumerate(
            islice(self._documents(), STREAMED if self._stream else None)
        ):
            messages = reader.messages(document)
            if messages is not None and not self._roles:
                # What the template always refuses, it refuses here, before anything is tokenised.
                reader.chat(messages)
            self._roles |= dict.fromkeys(m["role"] for m in messages or ())
            marks = reader.marks(document, "" if messages else reader.raw(document))
            for mark in marks:
                self._fields.setdefault(mark.value.field, {})[mark.value] = None
            self._describe(document)
            said = [[*vars(mark.value).values(), mark.start, mark.stop] for mark in marks]
            digest.update(json.dumps([number, said]).encode())
        if reader.file is not None:
            self._descriptions |= reader.file.descriptions
            if not self._stream:
                reader.file.check_used()
        self._digest = digest.hexdigest()
        self._name()

    def _describe(self, document: Document) -> None:
        given = document.fields.get(DESCRIPTIONS)
        if given is not None and not self._reader.silent:
            self._descriptions |= descriptions_of(given, document.origin)

    def _name(self) -> None:
        """Give every column its index."""
        names = [v.column for values in self._fields.values() for v in values]
        if self._roles:
            self._roles[TEMPLATE] = None
            self._check_roles()
            names += [f"role={role}" for role in self._roles]
        names = list(dict.fromkeys(names))
        if len(names) > MOST_LABELS:
            field = max(self._fields, key=lambda field: len(self._fields[field]))
            values = list(self._fields[field])
            raise UsageError(
                f"The label {field!r} has {len(values)} different values, such as "
                f"{shown(values[0].value)}; of all labels together {MOST_LABELS} values are kept. "
                "Name the fields that are labels with --labels FIELD, or none with --labels none."
            )
        check_label_names(names, "The text")
        if unknown := [name for name in self._descriptions if name not in names]:
            raise UsageError(
                f"{DESCRIPTIONS!r} describe {unknown[0]!r}, which is no label of the text; its "
                f"labels are {', '.join(names[:8])}."
            )
        self._columns = {name: i for i, name in enumerate(names)}

    def _check_roles(self) -> None:
        if unknown := [role for role in self._reader.roles if role not in self._roles]:
            raise UsageError(
                f"Nobody in the text has the role {unknown[0]!r}; its roles are "
                f"{', '.join(self._roles)}."
            )

    @property
    def facts(self) -> JsonObject:
        """The options asked for, and the digest of what was read."""
        given = {"labels": self._reader.labels, "roles": self._reader.roles}
        lists: JsonObject = {name: [*values] for name, values in given.items()}
        names: list[JsonValue] = [*self._columns]
        descriptions: JsonObject = {**self._descriptions}
        return {
            **lists,
            "names": names,
            "descriptions": descriptions,
            "labels_sha256": self._digest,
            "stream": self._stream,
        }

    @property
    def text_field(self) -> None:
        """None: rows are given whole."""
        return

    @property
    def label_names(self) -> tuple[str, ...]:
        """Labels by field, then roles."""
        return tuple(self._columns)

    @property
    def label_descriptions(self) -> Mapping[str, str]:
        """The meaning of each label: the text's description, else what was read."""
        return {name: self._descriptions.get(name) or _described(name) for name in self._columns}

    @property
    def columns(self) -> Mapping[str, np.dtype]:
        """The labels, and the tokens with rows if not all have one."""
        names = [LABELS] * bool(self._columns) + [ROW] * bool(self._reader.roles)
        return {name: np.dtype(bool) for name in names}

    def text(self, document: Document) -> str:
        """The document's text: a field, its tokens joined by spaces, or its messages."""
        return self._checked().text(document)

    def annotate(
        self, document: Document, text: str, offsets: Int[ndarray, "token 2"]
    ) -> Mapping[str, Bool[ndarray, "token ..."]]:
        """The labels of every token, and whether the token gets a row."""
        messages = self._checked().messages(document)
        found: dict[str, Bool[ndarray, "token ..."]] = {}
        raw = "" if messages else self._reader.raw(document)
        marks = [_cleaned(mark, raw) for mark in self._reader.marks(document, raw)]
        roles: list[str] = []
        if messages is not None:
            roles = self._reader.chat(messages).roles(offsets)
        if self._columns:
            self._check_known(marks, roles, document.origin)
            table = token_table(marks, self._columns, text, offsets)
            for token, role in enumerate(roles):
                table[token, self._columns[f"role={role}"]] = True
            found[LABELS] = table
        if wanted := self._reader.roles:
            found[ROW] = np.array([role in wanted for role in roles], dtype=bool)
        return found

    def _check_known(self, marks: list[Mark], roles: list[str], origin: Origin) -> None:
        names = [mark.value.column for mark in marks] + [f"role={role}" for role in roles]
        if unknown := [name for name in names if name not in self._columns]:
            raise UsageError(
                f"{origin}: the label {unknown[0]!r} is in none of the first {STREAMED} rows, in "
                "which a stream's labels are looked for; leave it out, or store the text as a file."
            )


def _described(name: str) -> str:
    field, equals, value = name.partition("=")
    return f"{field} is {value}." if equals else f"Labelled {name}."


def _cleaned(mark: Mark, raw: str) -> Mark:
    """The mark's position after `clean`, which turns a two-character line end into one newline."""
    if mark.start is None or mark.stop is None or "\r" not in raw:
        return mark
    return Mark(mark.value, len(clean(raw[: mark.start])), len(clean(raw[: mark.stop])))


def _texts(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()
