"""Documents of the synthetic language, and the features that are on at each of their tokens.

A document is one context: `<bos>`, then sentences until the context is full. Its mode decides the
kind of sentences: a story, Spanish, brackets, echoes (repeated random spans), or a dialogue in
which each speaker keeps to one of two languages.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int32

from saelab.config import UsageError
from saelab.lm.tiny import N_CTX, sentences
from saelab.lm.tiny.labels import LABELS, Label, annotate
from saelab.lm.tiny.patterns import brackets, long_echo, short_echo
from saelab.lm.tiny.sentences import COLON, PERIOD, Sentence, Writer
from saelab.lm.tiny.vocabulary import BOS, ID

__all__ = ["LABELS", "Documents", "Label", "Split", "generate", "generate_tokens"]

Split = Literal["train", "held-out"]

_STORY: tuple[Sentence, ...] = (
    *(9 * (sentences.agreement,)),
    *(9 * (sentences.indirect_object,)),
    *(6 * (sentences.pronoun,)),
    *(4 * (sentences.feeling,)),
    *(4 * (sentences.years,)),
    *(3 * (sentences.weekday_arithmetic,)),
    *(4 * (sentences.month_arithmetic,)),
    *(2 * (short_echo,)),
)
_ENGLISH_TURN: tuple[Sentence, ...] = (sentences.agreement, sentences.feeling)
_LANGUAGES = (ID["english"], ID["spanish"])
_SPEAKS = ID["speaks"]


@dataclass(frozen=True)
class Documents:
    """Tokens and the features that are on at each.

    Attributes:
        tokens: `[n, n_ctx]`, ids of `vocabulary.WORDS`.
        labels: `[n, n_ctx, len(LABELS)]`, in the order of `LABELS`.
    """

    tokens: Int32[np.ndarray, "n n_ctx"]
    labels: Bool[np.ndarray, "n n_ctx n_labels"]


def generate(
    seed: int, start: int, stop: int, *, split: Split = "train", n_ctx: int = N_CTX
) -> Documents:
    """Documents `start` to `stop - 1` with their labels.

    Document i depends only on `(seed, split, i)`, on every machine: `random.Random` is seeded with
    these three numbers and only its `random()` is used, which Python keeps stable. A shorter
    `n_ctx` gives prefixes of the same documents. Held-out echo spans and deep bracket skeletons
    never occur in training (`patterns`); everything else has the same distribution.

    Raises:
        UsageError: a negative seed or start, a stop before the start, or an n_ctx below 1.
    """
    tokens = generate_tokens(seed, start, stop, split=split, n_ctx=n_ctx)
    return Documents(tokens, annotate(tokens))


def generate_tokens(
    seed: int, start: int, stop: int, *, split: Split = "train", n_ctx: int = N_CTX
) -> Int32[np.ndarray, "n n_ctx"]:
    """The tokens of `generate` without the labels, for training."""
    _check_range(seed, start, stop, n_ctx)
    out = np.empty((stop - start, n_ctx), np.int32)
    held_out = split == "held-out"
    for row in range(stop - start):
        # MT19937's seeding takes integers of any size, so the three numbers stay separate.
        key = (seed << 65) | (held_out << 64) | (start + row)
        out[row] = _document(random.Random(key).random, n_ctx, held_out=held_out)
    return out


def _check_range(seed: int, start: int, stop: int, n_ctx: int) -> None:
    if seed < 0:
        raise UsageError(f"seed={seed} is negative; use 0 or more.")
    if not 0 <= start <= stop < 2**64:
        raise UsageError(f"Documents {start} to {stop} are no range; use 0 <= start <= stop.")
    if n_ctx < 1:
        raise UsageError(f"n_ctx={n_ctx} leaves no room for <bos>; use 1 or more.")


def _document(uniform: Callable[[], float], n_ctx: int, *, held_out: bool) -> list[int]:
    writer = Writer(uniform, held_out=held_out)
    writer.out.append(ID[BOS])
    mode = uniform()
    if mode >= 0.9:
        _dialogue(writer, n_ctx)
        return writer.out[:n_ctx]
    pool = _STORY if mode < 0.54 else (_pattern(mode),)
    out, n_pool = writer.out, len(pool)
    while len(out) < n_ctx:
        pool[int(uniform() * n_pool)](writer)
    return out[:n_ctx]


def _pattern(mode: float) -> Sentence:
    if mode < 0.64:
        return sentences.spanish
    return brackets if mode < 0.76 else long_echo


def _dialogue(writer: Writer, n_ctx: int) -> None:
    """`alice speaks spanish . bob speaks english . alice : la casa brilla . bob : ...`."""
    first, second = writer.two_names()
    language = writer.coin()
    languages = {first: language, second: 1 - language}
    if writer.random() < 0.4:
        languages.setdefault(writer.pick(sentences.ALL_NAMES), writer.coin())
    for name, spoken in languages.items():
        writer.out += (name, _SPEAKS, _LANGUAGES[spoken], PERIOD)
    speakers = tuple(languages)
    while len(writer.out) < n_ctx:
        speaker = writer.pick(speakers)
        writer.out += (speaker, COLON)
        if languages[speaker]:
            sentences.spanish(writer)
        else:
            _ENGLISH_TURN[writer.coin()](writer)
