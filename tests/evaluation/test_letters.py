"""First-letter absorption on a vocabulary whose absorbed words are planted."""

from dataclasses import dataclass, field
from string import ascii_lowercase
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from evaluation.cases import rows_of, sae_with, sparse
from stand_in import answer_as

from saelab.config import UsageError
from saelab.evaluation.tasks.letters import measure_letters, vocabulary_words
from saelab.evaluation.tasks.pooled import TextReader
from saelab.host.host import Host

SETTING = {"n_words": 162, "n_examples": 2, "seed": 0}
MARKS = {"marked": "Ġ", "none": ""}


@dataclass
class Vocabulary:
    """A tokenizer of 162 words of each letter, each marked as a word's beginning."""

    mark: str
    unknown_id: int | None = None
    names: list[str] = field(init=False)

    def __post_init__(self):
        endings = [a + b for a in "abcdefghi" for b in "ijklmnopqrstuvwxyz"]
        words = [letter + ending for letter in ascii_lowercase for ending in endings]
        self.names = ["<bos>", "a", "1x", *(self.mark + word for word in words)]
        self.names += [word.upper() for word in words[:5]]
        self.table = SimpleNamespace(names=self.names)

    def token(self, token_id: int) -> str:
        return self.names[token_id]

    def chat(self, messages):
        raise NotImplementedError

    def encode(self, text: str) -> list[int]:
        return [2] * len(text.split())


class Speaker:
    """A language model with another tokenizer."""

    tokenizer: Vocabulary


@dataclass
class Planted:
    """x has a coordinate for each letter; 24 words of `a` each fire a latent of their own alone."""

    lm: Any
    prefixes: list[np.ndarray] = field(default_factory=list)
    own: set[str] = field(default_factory=set)

    def ends(self, prefixes, ends, title):
        self.prefixes = prefixes
        tokens = torch.from_numpy(np.concatenate(ends))
        words = [self.lm.tokenizer.token(int(i)).strip(" Ġ▁").lower() for i in tokens]
        place = torch.tensor([ascii_lowercase.index(word[0]) for word in words])
        own = (place == 0) & torch.tensor([word[1:] < "bo" for word in words])
        self.own = {word for word, fires in zip(words, own.tolist(), strict=True) if fires}
        codes = torch.zeros(len(words), 50)
        latent = torch.where(own, 25 + own.cumsum(0), place)
        codes[torch.arange(len(words)), latent] = 1.0
        return rows_of(codes @ ATOMS, sparse(codes), token=tokens)


ATOMS = torch.eye(50) + torch.outer(torch.arange(50) >= 26, torch.eye(50)[0])


def reader_of(tokenizer: Vocabulary, lm, monkeypatch) -> tuple[TextReader, Planted]:
    with_words: Any = Speaker()
    answer_as(with_words, lm)
    with_words.tokenizer = tokenizer
    reader, planted = TextReader(Host.at(with_words, sae_with(ATOMS), "x")), Planted(with_words)
    monkeypatch.setattr(reader, "ends", planted.ends)
    return reader, planted


@pytest.mark.parametrize("kind", MARKS)
def test_planted_absorption_is_found_with_any_tokenizer(kind, random_lm, monkeypatch):
    reader, planted = reader_of(Vocabulary(MARKS[kind]), random_lm, monkeypatch)
    found = measure_letters(reader, asked="", setting=SETTING)
    assert [task.name for task in found.tasks] == list(ascii_lowercase)
    by_letter = {task.name: task.rate for task in found.tasks}
    # <bos>, and two solved examples of six words.
    assert {tuple(prefix) for prefix in planted.prefixes} == {(0, *[2] * 12)}
    assert len(planted.own) == 24
    # Of the scored words, a fifth of those of `a`.
    assert by_letter["a"].full == pytest.approx(24 / 162, abs=0.12)
    assert by_letter["a"].full == pytest.approx(by_letter["a"].fraction)
    assert {by_letter[letter].full for letter in "bcdxyz"} == {0.0}
    assert found.full.value == pytest.approx(by_letter["a"].full / 26)


def test_words_are_counted_once_without_case_and_spaces(random_lm, monkeypatch):
    words = vocabulary_words(reader_of(Vocabulary(" "), random_lm, monkeypatch)[1].lm)
    assert len(words) == 26 * 162
    # The token with a space before it, not the one in capitals.
    assert words["aai"] == 3


def test_a_tokenizer_that_does_not_know_the_examples_says_so(random_lm, monkeypatch):
    reader, _ = reader_of(Vocabulary("", unknown_id=2), random_lm, monkeypatch)
    with pytest.raises(UsageError, match="--n-examples 0"):
        measure_letters(reader, asked="", setting=SETTING)


def test_words_behind_a_shared_prefix_are_read_as_in_a_whole_pass(small_run, random_lm):
    reader = TextReader(Host.of_run(small_run, random_lm), most=3)
    prefixes, ends = [np.array([0, 3, 4, 5]), np.array([0, 7])], [np.arange(4, 9), np.arange(5, 7)]
    rows = reader.ends(prefixes, ends, "Words")
    behind = [(prefix, token) for prefix, own in zip(prefixes, ends, strict=True) for token in own]
    assert rows.token.tolist() == [int(token) for _, token in behind]
    for x, (prefix, token) in zip(rows.x, behind, strict=True):
        whole = torch.tensor([[*prefix, token]])
        found = random_lm.capture(whole, [small_run.config.site])[small_run.config.site]
        torch.testing.assert_close(x, found[0, -1], atol=1e-5, rtol=1e-4)
    wanted = reader.host.sae.encode(rows.x)
    torch.testing.assert_close(rows.codes.dense(), wanted.dense())
