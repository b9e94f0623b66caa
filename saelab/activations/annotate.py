"""What a corpus knows about its tokens beside their ids: labels, roles, chat templates.

An `Annotator` given to `load_corpus` sees each document before it is tokenised, and then where its
tokens are.
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Shaped
from numpy import ndarray

from saelab.activations.documents import Document
from saelab.activations.format import JsonObject

LABELS = "labels"
"""The column that becomes `Contexts.labels`: one bool for each label name."""
ROW = "row"
"""The column that says which tokens get rows; without it all but special tokens do."""


@runtime_checkable
class Annotator(Protocol):
    """Turns documents into text to tokenise, and into columns with one entry per token."""

    @property
    def facts(self) -> JsonObject:
        """What decides the result, recorded with the corpus; JSON-ready."""
        ...

    @property
    def text_field(self) -> str | None:
        """The field that holds the text; None if `text` makes the text from the other fields."""
        ...

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels in the column `LABELS`; empty if there is no such column."""
        ...

    @property
    def label_descriptions(self) -> Mapping[str, str]:
        """What each label means."""
        ...

    @property
    def columns(self) -> Mapping[str, np.dtype]:
        """Name and dtype of every column that `annotate` gives; `LABELS` is bool."""
        ...

    def text(self, document: Document) -> str:
        """The text to tokenise for this document; a document with blank text is left out.

        Raises:
            UsageError: the document lacks something needed; the message gives its origin.
        """
        ...

    def annotate(
        self, document: Document, text: str, offsets: Int[ndarray, "token 2"]
    ) -> Mapping[str, Shaped[ndarray, "token ..."]]:
        """Each column's entries for the document's tokens.

        `text` is the result of the method `text`. `offsets` are the characters `[start, stop)` of
        `text` that each token covers. `LABELS` has the shape `[token, label]`, any other column
        `[token]`.
        """
        ...
