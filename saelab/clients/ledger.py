"""What was asked and answered, kept as it happens, so that a kill costs nothing twice.

A file of JSON objects, one a line, only ever appended to:

    {"sent": KEY, "tokens": MOST}                 before a request leaves
    {"answered": KEY, "text": ..., "prompt_tokens": N, "completion_tokens": N, "chances": ...}
    {"failed": KEY, "tokens": N}                  N: what it may have cost

A request that was sent and never ended (its process was killed) counts as one request and its most
tokens. A last line without its end is dropped.
"""

import json
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeGuard

from saelab.clients.question import LONGEST_ANSWER, Answer, Question
from saelab.config import UsageError
from saelab.files import fsync_directory, make_directory, telling
from saelab.formats.json_file import parse_json
from saelab.formats.regular import MissingFileError, read_regular

MAX_LEDGER_BYTES = 2**31
MAX_LINE_BYTES = 2**16


class Ledger:
    """The ledger at `path`; the first entry makes the file. Threads may share it.

    Attributes:
        answers: every answer, by the question's key.
        requests: how many were sent.
        tokens: what they cost; for those not ended, the most that they may cost.

    Raises:
        UsageError: the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[str, Answer] = {}
        self.requests = 0
        self.tokens = 0
        self._open: dict[str, list[int]] = {}
        self._mutex = threading.Lock()
        self._file: int | None = None
        for number, line in enumerate(self._lines(), 1):
            self._read(line, number)

    def reserve(self, question: Question, max_requests: int, max_tokens: int) -> bool:
        """Enter that it is sent; False, and nothing entered, if it may pass the budget."""
        most = question.most_tokens
        with self._mutex:
            if self.requests + 1 > max_requests or self.tokens + most > max_tokens:
                return False
            self._append({"sent": question.key, "tokens": most})
            self._sent(question.key, most)
            return True

    def answered(self, question: Question, answer: Answer) -> None:
        """Enter an answer, on the disk before this returns."""
        with self._mutex:
            self._append({"answered": question.key, **_values(answer)}, durable=True)
            self._ended(question.key, answer.n_tokens or None)
            self.answers[question.key] = answer

    def failed(self, question: Question, tokens: int) -> None:
        """Enter that a request failed, and what it may have cost."""
        with self._mutex:
            self._append({"failed": question.key, "tokens": tokens})
            self._ended(question.key, tokens)

    def add(self, answers: Iterable[tuple[str, Answer]]) -> None:
        """Enter answers that were given elsewhere, by the question's key."""
        with self._mutex:
            for key, answer in answers:
                self._append({"answered": key, **_values(answer)})
                self.tokens += answer.n_tokens
                self.answers[key] = answer
            if self._file is not None:
                os.fsync(self._file)

    def close(self) -> None:
        """Close the file."""
        with self._mutex:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def forget(self) -> None:
        """Remove the file: its answers are in a result."""
        self.close()
        self.path.unlink(missing_ok=True)

    def _sent(self, key: str, most: int) -> None:
        self.requests += 1
        self.tokens += most
        self._open.setdefault(key, []).append(most)

    def _ended(self, key: str, tokens: int | None) -> None:
        # A killed process's request stays open; the last one sent is the one that has ended.
        waiting = self._open.get(key)
        most = waiting.pop() if waiting else 0
        # A server that does not say what an answer cost may have charged the most.
        self.tokens += (most if tokens is None else tokens) - most

    def _append(self, entry: dict[str, Any], *, durable: bool = False) -> None:
        line = (json.dumps(entry, allow_nan=False) + "\n").encode()
        with telling(self.path):
            if self._file is None:
                self._file = self._opened()
            # One write: a kill leaves the whole line or, on a full disk, a part that is dropped.
            written = os.write(self._file, line)
            if written < len(line):
                os.write(self._file, line[written:])
            if durable:
                os.fsync(self._file)

    def _opened(self) -> int:
        make_directory(self.path.parent)
        new = not self.path.exists()
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        os.ftruncate(file, self._whole)
        if new:
            fsync_directory(self.path.parent)
        return file

    def _lines(self) -> list[bytes]:
        try:
            raw = read_regular(self.path, most=MAX_LEDGER_BYTES)
        except MissingFileError:
            raw = b""
        self._whole = raw.rfind(b"\n") + 1
        return raw[: self._whole].splitlines()

    def _read(self, line: bytes, number: int) -> None:
        where = f"Line {number} of {self.path}"
        if len(line) > MAX_LINE_BYTES:
            raise UsageError(f"{where} is longer than {MAX_LINE_BYTES:,} bytes; {_REMEDY}.")
        match parse_json(line, where, max_values=100):
            case {"sent": str(key), "tokens": int(most)} if most >= 0:
                self._sent(key, most)
            case {"failed": str(key), "tokens": int(tokens)} if tokens >= 0:
                self._ended(key, tokens)
            case {"answered": str(key), **values} if (answer := answer_of(values)) is not None:
                self._ended(key, answer.n_tokens or None)
                self.answers[key] = answer
            case _:
                raise UsageError(f"{where} is no request and no answer; {_REMEDY}.")


_REMEDY = "move the file away to ask everything again"


def _values(answer: Answer) -> dict[str, Any]:
    return {
        "text": answer.text,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "chances": answer.chances,
    }


def answer_of(values: dict[str, Any]) -> Answer | None:
    """The answer of untrusted JSON values; None if they are none."""
    text, chances = values.get("text"), values.get("chances")
    spent, written = values.get("prompt_tokens"), values.get("completion_tokens")
    if not isinstance(text, str) or len(text) > LONGEST_ANSWER:
        return None
    if not (_is_count(spent) and _is_count(written)):
        return None
    if chances is None:
        return Answer(text, spent, written)
    if not isinstance(chances, list) or any(type(c) not in (int, float) for c in chances):
        return None
    whole = all(0 <= chance <= 1 for chance in chances)
    return Answer(text, spent, written, tuple(map(float, chances))) if whole else None


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**31
