"""What a corpus knows of its tokens beside their ids: labels, roles, text made by a template.

Whoever knows something of documents gives `load_corpus` an `Annotator`. It sees each document
before it is tokenised, and where its tokens stand afterwards.
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
"""The column that says which tokens get rows; without it all do that are not special."""


@runtime_checkable
class Annotator(Protocol):
    """Turns documents into text to tokenise, and into columns that have an entry for each token."""

    @property
    def facts(self) -> JsonObject:
        """What decides the result, recorded with the corpus; JSON-ready."""
        ...

    @property
    def text_field(self) -> str | None:
        """The field that holds the text; None: `text` makes it of the document's other fields."""
        ...

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels in the column `LABELS`; empty where there is no such column."""
        ...

    @property
    def label_descriptions(self) -> Mapping[str, str]:
        """What each label means."""
        ...

    @property
    def columns(self) -> Mapping[str, np.dtype]:
        """Name and number type of every column that `annotate` gives; `LABELS` is bool."""
        ...

    def text(self, document: Document) -> str:
        """What is tokenised in the document's place; blank: the document is left out.

        Raises:
            UsageError: the document lacks what is needed, with its origin.
        """
        ...

    def annotate(
        self, document: Document, text: str, offsets: Int[ndarray, "token 2"]
    ) -> Mapping[str, Shaped[ndarray, "token ..."]]:
        """Each column's entries for the document's tokens.

        `offsets` are the characters of `text` that each token stands for, `[start, stop)`; `text`
        is what the method `text` returned. `LABELS` has the shape `[token, label]`, any other
        column `[token]`.
        """
        ...
