"""Conversations through a chat model's template, and the role of each part of the text.

Corpora and prompts both use this module. It imports neither torch nor transformers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from saelab.config import UsageError

TEMPLATE = "template"
"""The role of text outside messages: headers, ends of turns, the template's own system prompt."""
Message = Mapping[str, str]


@runtime_checkable
class ChatTokenizer(Protocol):
    """A tokenizer that may have a chat template."""

    def chat_text(self, messages: Sequence[Message], *, answer: bool) -> str:
        """The messages through the template, without <bos>; `answer` opens the model's turn.

        Raises:
            UsageError: the tokenizer has no template, or the template refuses the messages.
        """
        ...


@dataclass(frozen=True)
class Turn:
    """The place of a message: characters `start` to `stop` of the text."""

    role: str
    start: int
    stop: int


@dataclass(frozen=True)
class Chat:
    """A conversation as text, without <bos>."""

    text: str
    turns: tuple[Turn, ...]

    def roles(self, offsets: Int[ndarray, "token 2"]) -> list[str]:
        """The role of each token, given each token's characters in order.

        A token that belongs partly to a message and partly to the template gets the message's role.
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

    Contents in parts, which some chat data has, are joined if all parts are text.

    Raises:
        UsageError: it is no such list; the sentence starts with `where`.
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
    """The messages through the tokenizer's chat template, and the place of each in the text.

    The places are found by rendering marks instead of the messages: the text between marks is the
    template's, even if a message repeats it. Templates may strip white space around a message, or
    drop its beginning.

    Raises:
        UsageError: there is no template, or the template refuses the messages, leaves one out, or
            changes the text between them.
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
            # Characters outside the message's own text are the template's.
            stop = stop if text[start : max(start, stop)] in content else -1
        turns.append(Turn(message["role"], start, stop))
        start = stop + len(behind)
    if not text.startswith(between[0]) or start != len(text) or any(t.stop < 0 for t in turns):
        raise UsageError(
            f"The chat template of {model} changes with what the messages say, so it cannot be "
            f"said which tokens are whose; the first message is {messages[0]['content'][:40]!r}."
        )
    return turns
