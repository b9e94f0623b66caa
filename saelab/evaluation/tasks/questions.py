"""Multiple choice questions: files of them, and which letter a language model answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, permutations
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from saelab.config import UsageError
from saelab.console import note
from saelab.evaluation.tasks.data import MAX_BYTES, json_rows
from saelab.evaluation.tasks.known import padded
from saelab.evaluation.tasks.pooled import Prompt, TextReader
from saelab.formats.json_file import canonical_digest
from saelab.formats.regular import read_regular
from saelab.lm.prompt import prompt_tokens
from saelab.lm.protocol import Edit, LanguageModel

MOST_ORDERS = 24
"""Orders of the choices in which a known question is answered right: all of four choices."""
HEAD = "These are multiple choice questions about {subject}, with their answers.\n\n"


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question.

    Attributes:
        right: the index of the right choice.
    """

    text: str
    choices: tuple[str, ...]
    right: int

    def orders(self) -> list[tuple[int, ...]]:
        """The first orders of the choices, that of the file first."""
        return list(islice(permutations(range(len(self.choices))), MOST_ORDERS))

    def asked(self, subject: str, order: Sequence[int]) -> str:
        """The prompt with the choices in this order; the letter of the right one comes next."""
        rows = zip(ascii_uppercase, order, strict=False)
        choices = "".join(f"{letter}. {self.choices[i]}\n" for letter, i in rows)
        return f"{HEAD.format(subject=subject)}{self.text}\n{choices}Answer:"


@dataclass(frozen=True)
class Questions:
    """Questions about one subject."""

    subject: str
    rows: list[ChoiceQuestion]

    @property
    def digest(self) -> str:
        """sha256 (hex) of subject and questions."""
        rows = [[row.text, list(row.choices), row.right] for row in self.rows]
        return canonical_digest({"subject": self.subject, "rows": rows})


def read_questions(path: Path) -> Questions:
    """The questions of a JSONL file; its name is the subject, with spaces for `_` and `-`.

    Raises:
        UsageError: a line is no question with choices and the right one's index or letter.
    """
    raw = read_regular(path, most=MAX_BYTES)
    rows = [_question(row, where) for where, row in json_rows(raw, path)]
    if not rows:
        raise UsageError(f"{path} has no question.")
    return Questions(path.stem.replace("_", " ").replace("-", " "), rows)


def _question(row: Mapping[str, Any], where: str) -> ChoiceQuestion:
    text, choices, answer = (row.get(name) for name in ("question", "choices", "answer"))
    if not isinstance(text, str) or not text.strip():
        raise UsageError(f"{where} has no text in its field 'question'.")
    if (
        not isinstance(choices, list)
        or not 2 <= len(choices) <= len(ascii_uppercase)
        or not all(isinstance(choice, str | int | float) for choice in choices)
    ):
        raise UsageError(f"{where} has no list of 2 to 26 texts or numbers in its field 'choices'.")
    if isinstance(answer, str) and len(answer) == 1:
        answer = ascii_uppercase.find(answer.upper())
    right = answer if isinstance(answer, int) and not isinstance(answer, bool) else -1
    if not 0 <= right < len(choices):
        raise UsageError(
            f"{where} has no index from 0 or letter of one of its {len(choices)} choices in its "
            "field 'answer'."
        )
    return ChoiceQuestion(text, tuple(str(choice) for choice in choices), right)


EditsOf = Callable[[Int[Tensor, "batch pos"]], Mapping[str, Edit]]
"""The edits of a batch of prompts."""


def prompts_for(
    lm: LanguageModel, questions: Questions, *, every_order: bool
) -> list[tuple[ChoiceQuestion, list[tuple[Prompt, tuple[int, ...]]]]]:
    """Each question with its prompts and the order of choices of each; those too long are left out.

    Raises:
        UsageError: the tokenizer does not know a prompt, or all are too long.
    """
    found = []
    for row in questions.rows:
        orders = row.orders() if every_order else row.orders()[:1]
        text = row.asked(questions.subject, orders[0])
        if 1 + len(lm.tokenizer.encode(text)) > lm.info.n_ctx:
            continue
        asked = [(row.asked(questions.subject, order), order) for order in orders]
        prompts = [(np.array(prompt_tokens(lm, text)), order) for text, order in asked]
        found.append((row, prompts))
    if not found:
        raise UsageError(
            f"All questions about {questions.subject} have more tokens than the {lm.info.n_ctx} "
            f"that {lm.info.name} reads."
        )
    if n := len(questions.rows) - len(found):
        note(f"{questions.subject}: {n} questions are longer than the model reads; left out.")
    return found


def answers(
    reader: TextReader, prompts: Sequence[tuple[Prompt, int]], edits: EditsOf | None = None
) -> list[int]:
    """Which choice the model answers each prompt, given with its number of choices.

    It is the letter of the largest logit, with or without a space before it.
    """
    lm = reader.host.lm
    letters = letter_tokens(lm, max(n for _, n in prompts))
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i][0]))
    n = reader.at_once(len(prompts[order[0]][0]))
    found = [0] * len(prompts)
    for first in range(0, len(order), n):
        places = order[first : first + n]
        tokens, last = (each.to(lm.device) for each in padded([prompts[i][0] for i in places]))
        out = lm.run(tokens, edits=edits(tokens) if edits else {}).at(last)
        logits = torch.cat([out.logits(part)[:, letters].float() for part in out.pieces()])
        for place, row in zip(places, logits.amax(dim=1), strict=True):
            found[place] = int(row[: prompts[place][1]].argmax())
        reader.n_tokens += tokens.numel()
    return found


def letter_tokens(lm: LanguageModel, n: int) -> Int[Tensor, "form letter"]:
    """The tokens of the first n letters: with a space before them, and alone if that is another.

    Raises:
        UsageError: a letter is no single token in either form.
    """
    forms = []
    for before in (" ", ""):
        ids = [lm.tokenizer.encode(before + letter) for letter in ascii_uppercase[:n]]
        known = [own[0] for own in ids if len(own) == 1 and own[0] != lm.tokenizer.unknown_id]
        if len(known) == n:
            forms.append(known)
    if not forms:
        raise UsageError(
            f"The letters A to {ascii_uppercase[n - 1]} are no single tokens of {lm.info.name}, so "
            "its answers cannot be read."
        )
    return torch.tensor(forms, device=lm.device)
