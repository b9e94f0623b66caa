"""Questions as a file for another system, and its answers from a file.

Both have one JSON object a line. A question is a request of OpenAI's batch interface, which many
servers and programs read:

    {"custom_id": KEY, "method": "POST", "url": "/v1/chat/completions",
     "body": {"model": ..., "messages": [...], "max_tokens": N}}

An answer is either that interface's output, or simply `{"custom_id": KEY, "answer": "..."}`.
"""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from saelab.clients.question import Answer, Question, bounded
from saelab.config import UsageError
from saelab.files import replace_file
from saelab.formats.json_file import parse_json
from saelab.formats.regular import read_regular

MAX_ANSWERS_BYTES = 2**31
MAX_LINE_VALUES = 100_000


def write_questions(path: Path, questions: Sequence[Question], model: str) -> None:
    """Write the questions to `path`, whole or not at all."""
    lines = (json.dumps(_request(question, model), ensure_ascii=False) for question in questions)
    replace_file(path, lambda file: file.writelines(f"{line}\n".encode() for line in lines))


def _request(question: Question, model: str) -> dict[str, Any]:
    body = {
        "model": model,
        "messages": question.messages,
        "max_tokens": question.max_tokens,
        "temperature": 0,
    }
    return {
        "custom_id": question.key,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": body,
    }


def read_answers(path: Path, known: Collection[str] | None) -> tuple[dict[str, Answer], int]:
    """The answers in the file at `path` by key, and how many failed requests it reports.

    Without `known` only the form is checked, before the questions are made.

    Raises:
        UsageError: a line is no answer, or answers no question of `known`: the file belongs to
            another run, other features or another version.
    """
    answers: dict[str, Answer] = {}
    n_failed = 0
    lines = read_regular(path, most=MAX_ANSWERS_BYTES).splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"Line {number} of {path}"
        values = parse_json(line, where, max_values=MAX_LINE_VALUES)
        key = values.get("custom_id") if isinstance(values, dict) else None
        if not isinstance(key, str):
            raise UsageError(f"{where} has no custom_id, which says what it answers.")
        if known is not None and key not in known:
            raise UsageError(
                f"{where} answers {key[:80]!r}, which is not asked here; its questions were "
                "exported from another run, other features, or with other options."
            )
        answer = _answer(values)
        if answer is None:
            n_failed += 1
        else:
            answers[key] = answer
    if not answers:
        raise UsageError(f"{path} holds no answer.")
    return answers, n_failed


def _answer(values: dict[str, Any]) -> Answer | None:
    """The answer of a line; None if it reports a failure, or is empty."""
    text, used = values.get("answer"), None
    if text is None:
        match values.get("response"):
            case {"body": {"choices": [{"message": {"content": str(text)}}, *_], **rest}}:
                used = rest.get("usage")
            case _:
                return None
    text = bounded(text) if isinstance(text, str) else ""
    return Answer(text, *tokens_used(used)) if text else None


def tokens_used(usage: object) -> tuple[int, int]:
    """Prompt and completion tokens of an untrusted `usage`; 0 where it says nothing sensible."""
    found = usage if isinstance(usage, dict) else {}
    counts = [found.get(name) for name in ("prompt_tokens", "completion_tokens")]
    one, two = (n if type(n) is int and 0 <= n < 2**31 else 0 for n in counts)
    return one, two
