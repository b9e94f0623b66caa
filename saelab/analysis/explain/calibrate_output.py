"""How far a judge of the output side can be trusted, where the effect is known.

The tiny model writes while the words of one feature are made more likely by RAISED nats. Nothing
else is changed, so what the feature makes the model write is known. A judge gets such texts and
others, with descriptions as in `saelab.analysis.explain.calibrate`: the true one, a false one, one
too broad and one too narrow. Half of the other texts are near misses: words are raised that the too
broad description names and the true one does not.
"""

import random
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy import ndarray
from torch import Tensor

from saelab.analysis.explain.calibrate import LEAST, Case, Language, language, other_descriptions
from saelab.analysis.explain.judging import JudgeTrial
from saelab.config import UsageError
from saelab.lm.load import load_language_model
from saelab.lm.protocol import LanguageModel
from saelab.lm.tiny.vocabulary import WORDS

RAISED = 18.0
"""Of its language the model is so sure that 10 nats often change nothing."""
PROMPT, WRITTEN = 8, 16
"""Tokens of an opening, with <bos>, and of what is written behind it."""
OFTEN = 0.5
"""Who knows the words of a description says yes if this share of the written words is of them."""
TOKEN = "This token is "

Words = Bool[ndarray, " vocabulary"]


@cache
def effects() -> Language:
    """The features that are on at every token of some words and at no other."""
    told = language()
    names = [name for name, text in told.described.items() if text.startswith(TOKEN)]
    sure = {name: told.on[name] for name in names if _by_word(told, name)}
    texts = {name: f"The model writes {told.described[name].removeprefix(TOKEN)}" for name in sure}
    return Language(told.tokens, sure, texts)


def _by_word(told: Language, name: str) -> bool:
    words = words_of(name)
    return bool(words.any()) and bool((words[told.tokens] == told.on[name]).all())


@cache
def words_of(name: str) -> Words:
    """The words at which a feature is on somewhere."""
    told = language()
    found = np.zeros(len(WORDS), dtype=bool)
    found[told.tokens[told.on[name]]] = True
    return found


def output_cases(n_features: int | None, n: int, seed: int = 0) -> list[Case]:
    """Features in a random order, each with `n` texts that it changed and `n` that others did.

    Raises:
        UsageError: there are no such many features.
    """
    told, draw = effects(), random.Random(seed)
    names = [
        name for name, on in told.on.items() if not name.startswith("word ") and on.sum() >= LEAST
    ]
    if n_features is not None and n_features > len(names):
        raise UsageError(f"--first {n_features} features: the language has {len(names)} to try.")
    draw.shuffle(names)
    kinds = [{"true": name, **other_descriptions(told, name, draw)} for name in names[:n_features]]
    raised = [list(_raised(told, kind, n, draw)) for kind in kinds]
    starts = draw.sample(range(len(told.tokens)), n)
    prompts = told.tokens[starts, :PROMPT]
    every = torch.from_numpy(np.array([words for one in raised for words, _ in one]))
    openings = torch.from_numpy(prompts).long().repeat(len(every) // n, 1)
    lm = load_language_model("tiny", device="cpu")
    texts = written_with(lm, openings, every, seed).split([len(one) for one in raised])
    return [
        _case(told, kind, prompts, [truth for _, truth in one], text.numpy())
        for kind, one, text in zip(kinds, raised, texts, strict=True)
    ]


def _raised(
    told: Language, kinds: dict[str, str], n: int, draw: random.Random
) -> Iterator[tuple[Words, bool]]:
    """The words that are raised for each text, and whether they are the feature's."""
    own = words_of(kinds["true"])
    every = [words_of(name) for name in told.on if not name.startswith("word ")]
    others = [words for words in every if not (words & own).any()]
    near = [words_of(kinds["too broad"]) & ~own] * (n // 2) if "too broad" in kinds else []
    yield from ((own, True) for _ in range(n))
    yield from ((words, False) for words in near)
    yield from ((draw.choice(others), False) for _ in range(n - len(near)))


@torch.no_grad()
def written_with(
    lm: LanguageModel,
    prompts: Int[Tensor, "text pos"],
    raised: Bool[Tensor, "text vocabulary"],
    seed: int,
) -> Int[Tensor, "text new"]:
    """What the model writes after each prompt while some words are more likely by RAISED nats."""
    generator = torch.Generator().manual_seed(seed)
    bias = RAISED * raised.float()
    tokens = prompts
    for _ in range(WRITTEN):
        logits = lm.run(tokens).behind().logits().float() + bias
        new = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)
        tokens = torch.cat([tokens, new], dim=1)
    return tokens[:, prompts.shape[1] :]


def _case(
    told: Language,
    kinds: dict[str, str],
    prompts: Int[ndarray, "prompt pos"],
    truths: Sequence[bool],
    written: Int[ndarray, "text new"],
) -> Case:
    trials = [
        JudgeTrial("steering", f"[{_text(prompts[i % len(prompts), 1:])}] {_text(text)}", truth)
        for i, (text, truth) in enumerate(zip(written, truths, strict=True))
    ]
    ideal = {
        kind: (words_of(name)[written].mean(axis=1) >= OFTEN).astype(float).tolist()
        for kind, name in kinds.items()
    }
    texts = {kind: told.described[name] for kind, name in kinds.items()}
    return Case(kinds["true"], trials, texts, ideal)


def _text(tokens: Int[ndarray, " pos"]) -> str:
    return " ".join(WORDS[token] for token in tokens.tolist())
