"""Questions to a language model, and its answers."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

from saelab.console import visible

LONGEST_ANSWER = 4_000
"""Characters of an answer that are kept; an explanation or a verdict is far shorter."""
TEMPLATE_TOKENS = 32
"""Most tokens that a chat template adds to two messages."""
BYTES_PER_TOKEN = 4
"""Usual in English; tokenizers of bytes make at most one token of each."""


@dataclass(frozen=True)
class Question:
    """A chat that a model shall continue.

    Attributes:
        name: what it is about, e.g. "explain/17"; unique in its task.
        system, user: the two messages.
        max_tokens: the longest answer.
        choices: answers of one word whose probabilities are wanted instead, where the client can
            tell them; empty if any text may be answered.
    """

    name: str
    system: str
    user: str
    max_tokens: int
    choices: tuple[str, ...] = ()

    @cached_property
    def key(self) -> str:
        """Name and digest: an answer to another text is not taken for an answer to this one."""
        text = json.dumps([self.system, self.user, self.choices])
        return f"{self.name}/{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @property
    def messages(self) -> list[dict[str, str]]:
        """The chat as endpoints take it."""
        return [
            {"role": "system", "content": self.system},
            {"role": "user", "content": self.user},
        ]

    @property
    def expected_tokens(self) -> int:
        """A guess of the tokens that it takes, with the longest answer."""
        return self._n_bytes // BYTES_PER_TOKEN + TEMPLATE_TOKENS + self.max_tokens

    @property
    def most_tokens(self) -> int:
        """No tokenizer takes more than this, with the longest answer: one token for each byte."""
        return self._n_bytes + TEMPLATE_TOKENS + self.max_tokens

    @property
    def _n_bytes(self) -> int:
        return len((self.system + self.user).encode())


def digest_of(questions: Iterable[Question]) -> str:
    """sha256 (hex) of what is asked: equal digests mean the same questions."""
    return hashlib.sha256("\n".join(question.key for question in questions).encode()).hexdigest()


@dataclass(frozen=True)
class Answer:
    """What a model answered.

    Attributes:
        text: at most `LONGEST_ANSWER` characters.
        prompt_tokens, completion_tokens: what it cost; both 0 if nobody says.
        chances: the probability of each of the question's choices among them; None if the client
            cannot tell.
    """

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    chances: tuple[float, ...] | None = None

    @property
    def n_tokens(self) -> int:
        """All tokens that it cost."""
        return self.prompt_tokens + self.completion_tokens


@runtime_checkable
class Client(Protocol):
    """A language model.

    Attributes:
        model: its name.
        kind: `endpoint` or `local`.
        place: where the questions go, for people: an address without secrets, or a path.
        parallel: how many questions it may be asked at once.
    """

    model: str
    kind: str
    place: str
    parallel: int

    def answer(self, question: Question) -> Answer:
        """Its answer.

        Raises:
            FailedError: this request failed.
            UsageError: no question can succeed (wrong key, model gone).
        """
        ...


class FailedError(Exception):
    """A request that failed.

    Attributes:
        again: whether the same question may succeed later.
        wait: seconds that the other side asks everybody to wait; None if it does not say.
        paid: whether it may have cost tokens.
        sent: whether it may have reached the other side.
    """

    def __init__(
        self,
        why: str,
        *,
        again: bool = True,
        wait: float | None = None,
        paid: bool = False,
        sent: bool = True,
    ) -> None:
        super().__init__(why)
        self.again = again
        self.wait = wait
        self.paid = paid
        self.sent = sent


def bounded(text: str) -> str:
    """An answer's text, bounded, on lines of characters that can be seen."""
    lines = text[:LONGEST_ANSWER].strip().splitlines()
    return "\n".join(visible(line.rstrip()) if line.strip() else "" for line in lines)
