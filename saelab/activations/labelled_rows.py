"""For each document of a labelled text: the text for the model, and the labels of it."""

from functools import cached_property
from pathlib import Path

from saelab.activations.documents import ROWS, Document, clean, row_document
from saelab.activations.label_file import LabelFile
from saelab.activations.marks import LABELS, SPANS, TOKENS, Mark, marks_of, words_of
from saelab.config import UsageError
from saelab.lm.chat import Chat, messages_of, render
from saelab.lm.protocol import Tokenizer

MESSAGES = "messages"
NONE = "none"


class RowReader:
    """Reads a document's text and its labels."""

    def __init__(
        self, tokenizer: Tokenizer, labels: tuple[str, ...], roles: tuple[str, ...], field: str
    ) -> None:
        self.tokenizer, self.labels, self.roles, self.field = tokenizer, labels, roles, field
        files = [name for name in labels if Path(name).suffix in ROWS or Path(name).is_file()]
        if len(files) > 1 or (NONE in labels and len(labels) > 1):
            raise UsageError(
                f"--labels {' '.join(labels)}: give fields and at most one file, or none alone."
            )
        self.fields = tuple(name for name in labels if name not in {*files, NONE})
        self._path = Path(files[0]) if files else None

    @cached_property
    def file(self) -> LabelFile | None:
        """The second file; read at the first use."""
        return None if self._path is None else LabelFile(self._path)

    @property
    def silent(self) -> bool:
        """Whether labels are switched off."""
        return self.labels == (NONE,)

    def is_marked(self, document: Document) -> bool:
        """Whether the document has labels or messages that were not asked for."""
        row = document.fields
        made = self.field not in row and (MESSAGES in row or TOKENS in row)
        return made or LABELS in row or SPANS in row

    def messages(self, document: Document) -> list[dict[str, str]] | None:
        """The document's messages; None if it is no conversation."""
        row = document.fields
        if MESSAGES in row and (self.roles or self.field not in row):
            return messages_of(row[MESSAGES], str(document.origin))
        if self.roles:
            raise UsageError(
                f"{document.origin}: the row has no field {MESSAGES!r}, so nobody in it has a "
                "role; leave --roles out."
            )
        return None

    def chat(self, messages: list[dict[str, str]]) -> Chat:
        """The messages as the chat template renders them."""
        return render(self.tokenizer, messages)

    def text(self, document: Document) -> str:
        """The text to tokenise; blank if the document is to be left out."""
        if (messages := self.messages(document)) is not None:
            return self.chat(messages).text
        return clean(self.raw(document))

    def raw(self, document: Document) -> str:
        """The text whose characters the spans count; empty for conversations."""
        row = document.fields
        if document.text:
            return document.text
        if self.field in row or TOKENS not in row:
            found = row_document(row, document.origin, self.field)
            return "" if found is None else str(row[self.field])
        return " ".join(words_of(row, document.origin))

    def marks(self, document: Document, text: str) -> list[Mark]:
        """The labels of the text (`raw`), from the row and from the file of labels."""
        if self.silent:
            return []
        if not text.strip() and MESSAGES not in document.fields:
            # The document is left out; its row in the file of labels is no error.
            if self.file is not None:
                self.file.skip(document)
            return []
        row, origin = document.fields, document.origin
        marks = marks_of(row, self.fields, text, origin)
        missing = [name for name in self.fields if name not in row]
        if missing:
            raise UsageError(
                f"{origin}: the row has no field {missing[0]!r}, which --labels names; it has "
                f"{', '.join(map(repr, row)) or 'none'}."
            )
        if self.file is not None:
            there, where = self.file.row_of(document)
            marks = marks + marks_of(there, (), text, where)
        return marks
