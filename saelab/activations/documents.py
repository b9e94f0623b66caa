"""Documents from files: plain text, JSONL, a directory of either, or a Hugging Face dataset."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saelab.config import UsageError

SUFFIXES = (".txt", ".md", ".jsonl")


def open_documents(source: str) -> Iterator[str]:
    """The non-empty documents of a source, in a fixed order.

    Raises:
        UsageError: the source does not exist, is empty or is not what its name says; raised before
            the first document is handed out where that can be known.
    """
    documents = _hub(source) if source.startswith("hf:") else _files(source)
    documents = (text for text in documents if text.strip())
    first = next(documents, None)
    if first is None:
        raise UsageError(f"{source} holds no text.")
    return itertools.chain([first], documents)


def _files(source: str) -> Iterator[str]:
    path = Path(source)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())
        if not files:
            raise UsageError(f"{path} has no files ending in {', '.join(SUFFIXES)}.")
    elif path.is_file():
        files = [path]
    else:
        raise UsageError(
            f"{source} is neither a file, a directory, 'tiny' nor hf:name; check --text."
        )
    return itertools.chain.from_iterable(
        _jsonl(file) if file.suffix == ".jsonl" else _plain(file) for file in files
    )


def _plain(path: Path) -> Iterator[str]:
    try:
        yield path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 text: {error.reason} at byte {error.start}."
        ) from None


def _jsonl(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)["text"]
            except (json.JSONDecodeError, KeyError, TypeError):
                text = None
            if not isinstance(text, str):
                raise UsageError(f"{path}, line {number}: no JSON object with a string 'text'.")
            yield text


def _hub(source: str) -> Iterator[str]:
    _, name, *rest = source.split(":")
    try:
        import datasets
    except ImportError:
        raise UsageError(
            "hf: sources need the datasets package: pip install 'saelab[hub]'."
        ) from None
    try:
        rows: Any = datasets.load_dataset(name, split=rest[0] if rest else "train", streaming=True)
        for row in rows:
            yield row["text"]
    except KeyError:
        raise UsageError(f"{source} has no 'text' column.") from None
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{source} cannot be streamed: {reason}") from error
