"""Conversations as a chat model reads them: text through its template, and who says which part.

One place for corpora and for prompts. Importing it imports neither torch nor transformers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from saelab.config import UsageError

TEMPLATE = "template"
"""The role of what no message says: headers, ends of turns, a system prompt of the template's."""
Message = Mapping[str, str]


@runtime_checkable
class ChatTokenizer(Protocol):
    """A tokenizer that may have a chat template."""

    def chat_text(self, messages: Sequence[Message], *, answer: bool) -> str:
        """The messages through the template, without <bos>; `answer` opens the model's turn.

        Raises:
            UsageError: there is no template, or it refuses the messages.
        """
        ...


@dataclass(frozen=True)
class Turn:
    """What a message says: characters `start` to `stop` of the text."""

    role: str
    start: int
    stop: int


@dataclass(frozen=True)
class Chat:
    """A conversation as text, without <bos>."""

    text: str
    turns: tuple[Turn, ...]

    def roles(self, offsets: Int[ndarray, "token 2"]) -> list[str]:
        """The role of each token, of which these are the characters, in order.

        A token that is partly a message's and partly the template's is the message's.
        """
        starts = np.array([turn.start for turn in self.turns])
        ends = np.maximum(offsets[:, 1], offsets[:, 0] + 1)
        turn = np.searchsorted(starts, ends, side="left") - 1
        return [
            self.turns[i].role if i >= 0 and self.turns[i].stop > start else TEMPLATE
            for i, start in zip(turn.tolist(), offsets[:, 0].tolist(), strict=True)
        ]


def messages_of(value: object, where: str) -> list[dict[str, str]]:
    """A list of messages, each with a role and a content that is text.

    Contents in parts, as some chat data has them, are joined if all parts are text.

    Raises:
        UsageError: it is none; the sentence starts with `where`.
    """
    if not isinstance(value, list) or not value:
        raise UsageError(
            f'{where}: messages are a list such as [{{"role": "user", "content": "Hello"}}], at '
            "least one."
        )
    found = []
    for number, message in enumerate(value, start=1):
        role, content = (
            message.get(key) if isinstance(message, Mapping) else None
            for key in ("role", "content")
        )
        content = _joined(content)
        if not isinstance(role, str) or not role.strip() or content is None:
            raise UsageError(
                f"{where}: message {number} needs a role and a content that are text; leave out "
                "messages of tools and pictures."
            )
        found.append({"role": role, "content": content})
    return found


def _joined(content: object) -> str | None:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if parts and len(texts) == len(parts) else None


def render(
    tokenizer: object,
    messages: Sequence[Message],
    *,
    answer: bool = False,
    model: str = "The model",
) -> Chat:
    """The messages through the tokenizer's chat template, and where in the text each stands.

    Where they stand is found by rendering marks in their place: what comes between marks is the
    template's, whatever the messages say, even if they repeat it. Templates may strip the white
    space around a message, or leave out the start of it.

    Raises:
        UsageError: there is no template, it refuses the messages, leaves one out, or changes what
            stands between them.
    """
    if not isinstance(tokenizer, ChatTokenizer):
        raise UsageError(f"{model} has no chat template; give plain text.")
    marks = [f"\ue000{i}\ue001" for i in range(len(messages))]
    marked = [{**m, "content": mark} for m, mark in zip(messages, marks, strict=True)]
    between, rest = [], tokenizer.chat_text(marked, answer=answer)
    for number, mark in enumerate(marks, start=1):
        before, found, rest = rest.partition(mark)
        if not found or mark in rest:
            raise UsageError(
                f"The chat template of {model} writes message {number} not once in its order, so "
                "it cannot be said which tokens are whose; leave that message out."
            )
        between.append(before)
    text = tokenizer.chat_text(messages, answer=answer)
    return Chat(text, tuple(_turns(text, messages, [*between, rest], model)))


def _turns(text: str, messages: Sequence[Message], between: list[str], model: str) -> list[Turn]:
    turns, start = [], len(between[0])
    for message, behind in zip(messages, between[1:], strict=True):
        content = message["content"]
        forms = (content, content.strip(), content.lstrip(), content.rstrip())
        stop = next((start + len(f) for f in forms if text.startswith(f + behind, start)), -1)
        if stop < 0:
            stop = text.find(behind, start) if behind else len(text)
            # What is no part of the message is no part of what it says.
            stop = stop if text[start : max(start, stop)] in content else -1
        turns.append(Turn(message["role"], start, stop))
        start = stop + len(behind)
    if not text.startswith(between[0]) or start != len(text) or any(t.stop < 0 for t in turns):
        raise UsageError(
            f"The chat template of {model} changes with what the messages say, so it cannot be "
            f"said which tokens are whose; the first message is {messages[0]['content'][:40]!r}."
        )
    return turns
