"""First-letter absorption on a vocabulary whose absorbed words are planted."""

from dataclasses import dataclass, field
from string import ascii_lowercase
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evaluation.cases import rows_of, sae_with, sparse
from stand_in import answer_as

from saelab.config import UsageError
from saelab.evaluation.tasks.letters import measure_letters, vocabulary_words
from saelab.evaluation.tasks.pooled import Reader

SETTING = {"n_words": 60, "n_examples": 2, "seed": 0}
MARKS = {"marked": "Ġ", "none": ""}


@dataclass
class Vocabulary:
    """A tokenizer of 60 words of each letter, each marked as a word's beginning."""

    mark: str
    unknown_id: int | None = None
    names: list[str] = field(init=False)

    def __post_init__(self):
        endings = [a + b for a in "abcdefgh" for b in "ijklmnop"][:60]
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


class PlantedReader(Reader):
    """x has a coordinate for each letter; 24 words of `a` each fire a latent of their own alone."""

    def __init__(self, tokenizer: Vocabulary, lm) -> None:
        sae = sae_with(torch.eye(50) + torch.outer(torch.arange(50) >= 26, torch.eye(50)[0]))
        with_words = Speaker()
        answer_as(with_words, lm)
        with_words.tokenizer = tokenizer
        self.host, self.n_tokens, self.read = (
            SimpleNamespace(lm=with_words, sae=sae, reads="x"),
            0,
            [],
        )

    def pooled(self, prompts, pool, title):
        assert pool == "last"
        self.read = prompts
        words = [self.host.lm.tokenizer.token(int(p[-1])).strip(" Ġ▁").lower() for p in prompts]
        place = torch.tensor([ascii_lowercase.index(word[0]) for word in words])
        own = (place == 0) & torch.tensor([word[1] in "abc" for word in words])
        self.own = {word for word, fires in zip(words, own.tolist(), strict=True) if fires}
        codes = torch.zeros(len(words), 50)
        latent = torch.where(own, 25 + own.cumsum(0), place)
        codes[torch.arange(len(words)), latent] = 1.0
        x = codes @ self.host.sae.W_dec.detach()
        return rows_of(x, sparse(codes), token=torch.tensor([int(p[-1]) for p in prompts]))


@pytest.mark.parametrize("kind", MARKS)
def test_planted_absorption_is_found_with_any_tokenizer(kind, random_lm):
    reader = PlantedReader(Vocabulary(MARKS[kind]), random_lm)
    found = measure_letters(reader, asked="", setting=SETTING)
    assert [task.name for task in found.tasks] == list(ascii_lowercase)
    by_letter = {task.name: task.rate for task in found.tasks}
    # Each prompt: <bos>, two solved examples of six words, the word.
    assert {len(prompt) for prompt in reader.read} == {14}
    assert all(np.all(prompt[1:-1] == 2) for prompt in reader.read)
    assert len(reader.own) == 24
    # Of the scored half of the 60 words of `a`.
    assert by_letter["a"].full == pytest.approx(24 / 60, abs=0.15)
    assert by_letter["a"].full == pytest.approx(by_letter["a"].fraction)
    assert {by_letter[letter].full for letter in "bcdxyz"} == {0.0}
    assert found.full.value == pytest.approx(by_letter["a"].full / 26)


def test_words_are_counted_once_without_case_and_spaces(random_lm):
    words = vocabulary_words(PlantedReader(Vocabulary(" "), random_lm).host.lm)
    assert len(words) == 26 * 60
    # The token with a space before it, not the one in capitals.
    assert words["aai"] == 3


def test_a_tokenizer_that_does_not_know_the_examples_says_so(random_lm):
    reader = PlantedReader(Vocabulary("", unknown_id=2), random_lm)
    with pytest.raises(UsageError, match="--n-examples 0"):
        measure_letters(reader, asked="", setting=SETTING)
