"""Prompts and tokens as users type them."""

import subprocess
import sys

import pytest
import torch

from saelab.config import UsageError
from saelab.lm.prompt import LONGEST, encode_prompt, prompt_tokens, token_id


def test_a_prompt_is_its_tokens_behind_bos(random_lm):
    ids = [random_lm.info.bos_token_id, *random_lm.tokenizer.encode("the cat")]
    assert prompt_tokens(random_lm, "the cat") == ids
    assert torch.equal(encode_prompt(random_lm, "the cat"), torch.tensor(ids))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "The prompt is empty; write some text."),
        (" \n", "The prompt is empty"),
        ("x" * (LONGEST + 1), "The prompt has 100001 characters, more than the 100000"),
        ("the zebra and a yak", "does not know “zebra”, “yak”; use words of its vocabulary."),
        (" ".join(f"w{i}" for i in range(7)), "“w0”, “w1”, “w2”, “w3”, “w4” and 2 more words;"),
        ("z" * 50, f"“{'z' * 40}”;"),
        ("cat " * 40, "The prompt has 41 tokens, 9 more than the 32 that"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_said_in_one_sentence(random_lm, text, sentence):
    with pytest.raises(UsageError) as error:
        prompt_tokens(random_lm, text)
    assert sentence in str(error.value)
    assert str(error.value).count(". ") == 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("zebra", "“zebra” is not one token of .*, which does not know it; give exactly one"),
        ("the cat", "“the cat” is not one token of .*, but 2; give exactly one token"),
        ("", "“” is not one token of .*, but 0"),
    ],
)
def test_a_text_that_is_not_one_token_is_refused(random_lm, text, why):
    assert token_id(random_lm, "cat") == random_lm.tokenizer.encode("cat")[0]
    with pytest.raises(UsageError, match=why):
        token_id(random_lm, text)


def test_a_token_may_need_a_space_before_it(random_lm):
    class Spaced:
        """Knows the word only behind a space, as many byte-level vocabularies do."""

        def encode(self, text):
            return [7] if text == " cat" else [3, 4]

    class Model:
        info, tokenizer = random_lm.info, Spaced()

    assert token_id(Model(), "cat") == 7  # pyright: ignore[reportArgumentType]


def test_importing_it_does_not_import_torch():
    code = "import sys, saelab.lm.prompt; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
