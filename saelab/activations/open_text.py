"""An opened source of text: its documents, and the shards to be tokenised."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from saelab.activations.annotate import Annotator
from saelab.activations.cutting import Cutter
from saelab.activations.documents import ROWS, Document
from saelab.activations.format import JsonObject
from saelab.activations.sources import (
    DocumentSource,
    FileSource,
    StreamSource,
    hub_documents,
    hub_parts,
)
from saelab.activations.text_files import find_files
from saelab.config import UsageError
from saelab.moved import now_at, remedy


@dataclass(frozen=True)
class OpenedText:
    """A source before tokenisation.

    Attributes:
        facts: the facts that decide its documents and their order.
        documents: all documents in the source's own order, with whole rows.
        read_as: gives its shards, with the text from one field, cut if a cutter is given.
        endless: whether its end is unknown.
    """

    facts: JsonObject
    documents: Callable[[], Iterator[Document]]
    read_as: Callable[[str | None, Cutter | None], DocumentSource]
    endless: bool

    def shards(
        self, text_field: str, cutter: Cutter, annotator: Annotator | None
    ) -> DocumentSource:
        """The shards for a text field; an annotator gets whole documents."""
        if annotator is None:
            return self.read_as(text_field, cutter)
        return self.read_as(annotator.text_field, None)


def open_text(source: str, seed: int, block: int) -> OpenedText:
    """The source of that name, in an order that the seed decides; nothing is tokenised.

    Raises:
        UsageError: the source is missing, unreadable or not text.
    """
    check_text(source)
    if not source.startswith("hf:"):
        files = FileSource(source, None, None, seed=seed, block=block)
        return OpenedText(files.facts, files.documents, files.read_as, endless=False)

    def read_as(field: str | None, cutter: Cutter | None) -> DocumentSource:
        del cutter  # a stream's texts are cut where they are tokenised
        return StreamSource(partial(hub_documents, source, field))

    documents = partial(hub_documents, source, None)
    return OpenedText({"order": "stream"}, documents, read_as, endless=True)


def check_text(source: str, labels: Sequence[str] = ()) -> None:
    """Refuse a text, or a file of labels, that is not there; what it holds is not read.

    Callers check before they load a model, which may take minutes.

    Raises:
        UsageError: the message names it.
    """
    if not source:
        # As a path it would be the current directory.
        raise UsageError("The name of the text is empty; give a file or a directory.")
    if source.startswith("hf:"):
        hub_parts(source)
    elif source != "tiny":
        find_files(source)
    for name in labels:
        if Path(name).suffix in ROWS and not Path(name).is_file():
            raise UsageError(f"{name} does not exist; check --labels.")


def text_now(source: str, near: Sequence[Path]) -> str:
    """Where a recorded text is now.

    Raises:
        UsageError: it is nowhere.
    """
    if source.startswith("hf:"):
        return source
    if (found := now_at(Path(source), near)) is None:
        raise UsageError(f"The text {source} is not there any more; {remedy()}.")
    return str(found)
