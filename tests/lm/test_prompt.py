"""Prompts and tokens as users type them."""

import json
import subprocess
import sys

import pytest
import torch
from lm.tokenizers_of_kinds import byte_level, words

from saelab.config import UsageError
from saelab.lm.prompt import (
    LONGEST,
    chat_prompt,
    encode_prompt,
    has_chat_template,
    prompt_note,
    prompt_tokens,
    token_id,
)
from saelab.lm.token_table import TokenTable
from saelab.lm.tokenizer import HuggingFaceTokenizer

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported.') }}{% endif %}" + CHATML
)


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

        table, unknown_id = TokenTable(["a", "b"]), None

    class Model:
        info, tokenizer = random_lm.info, Spaced()

    assert token_id(Model(), "cat") == 7  # pyrefly: ignore[bad-argument-type]


class Chatty:
    """What prompts ask of a model whose tokenizer has special tokens and a chat template."""

    def __init__(self, info, template=None, kind=byte_level, bos="<s>"):
        plain = kind()
        plain.chat_template = template
        self.plain, self.tokenizer = plain, HuggingFaceTokenizer(plain)
        self.info = info.model_copy(
            update={
                "d_vocab": len(plain),
                "n_ctx": 200,
                "bos_token_id": plain.convert_tokens_to_ids(bos) if bos else None,
                "special_token_ids": tuple(plain.all_special_ids),
            }
        )


@pytest.fixture
def chatty(random_lm):
    def make(*given, **named):
        return Chatty(random_lm.info, *given, **named)

    return make


def test_special_tokens_are_read_where_a_prompt_names_them(chatty):
    lm = chatty()
    ids = prompt_tokens(lm, "<|im_start|>user\nthe dog<|im_end|>")
    special = lm.plain.convert_tokens_to_ids(["<s>", "<|im_start|>", "<|im_end|>"])
    assert [ids[0], ids[1], ids[-1]] == special
    assert lm.tokenizer.text(ids) == "<s><|im_start|>user\nthe dog<|im_end|>"
    assert token_id(lm, "<|im_end|>") == special[2]


@pytest.mark.parametrize(("text", "times"), [("<s>the dog", "2"), ("<s><s>the dog", "3")])
def test_a_prompt_begins_once_and_says_so(chatty, capsys, text, times):
    lm = chatty()
    assert prompt_tokens(lm, text) == prompt_tokens(lm, "the dog")
    told = capsys.readouterr().err
    assert told == f"Note: {prompt_note(lm, text)}\n"
    assert f"it is there once, not {times} times" in told
    assert not prompt_note(lm, "the <s> dog")
    with pytest.raises(UsageError, match="no tokens"):
        prompt_tokens(lm, "<s>")


def test_a_model_without_a_beginning_gets_none(chatty):
    lm = chatty(bos=None)
    assert lm.tokenizer.text(prompt_tokens(lm, "<s>the dog")) == "<s>the dog"


def test_unknown_words_are_refused_beside_special_tokens(chatty):
    lm = chatty(kind=words)
    assert lm.tokenizer.text(prompt_tokens(lm, "the <unk> cat")) == "<s> the <unk> cat"
    with pytest.raises(UsageError, match=r"does not know “zebra”; use words"):
        prompt_tokens(lm, "<|im_start|> the <unk> zebra")


def test_tokens_that_the_model_lacks_are_refused(chatty):
    lm = chatty()
    lm.info = lm.info.model_copy(update={"d_vocab": 20})
    with pytest.raises(UsageError, match=r"no embedding of, such as “t?h?e?.* of 20\)"):
        prompt_tokens(lm, "the dog")


MESSAGES = """[{"role": "system", "content": "Be 日本."}, {"role": "user", "content": "the dog"}]"""


@pytest.mark.parametrize("text", ["the dog", "[hello] the dog", MESSAGES])
def test_a_chat_prompt_is_what_the_model_was_trained_on(chatty, capsys, text):
    lm = chatty("{{ bos_token }}" + CHATML)
    messages = json.loads(text) if text == MESSAGES else [{"role": "user", "content": text}]
    expected = lm.plain.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert prompt_tokens(lm, chat_prompt(lm, text)) == expected
    assert not capsys.readouterr().err


def test_whether_a_model_chats_is_told_by_its_files(tmp_path):
    assert not has_chat_template("tiny")
    assert not has_chat_template("no/such-model")
    assert not has_chat_template("no such: model")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert not has_chat_template(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    assert has_chat_template(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text("[")
    assert not has_chat_template(str(tmp_path))
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert has_chat_template(str(tmp_path))


def test_an_assistants_message_is_continued(chatty):
    lm = chatty(CHATML)
    text = '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "the"}]'
    assert chat_prompt(lm, text).endswith("<|im_start|>assistant\nthe")


@pytest.mark.parametrize(
    ("template", "text", "sentence"),
    [
        (None, "the dog", "has no chat template, so it cannot read messages"),
        (NO_SYSTEM, MESSAGES, "template refuses these messages: System role not supported."),
        ("{{ nothing.at.all }}", "the dog", "template refuses these messages: 'nothing' is unde"),
        ("{% for", "the dog", "template refuses these messages: "),
        (CHATML, " ", "The prompt is empty; write some text."),
        (CHATML, '[{"role": "user"', "The messages of the prompt are not JSON"),
        (CHATML, '[{"role": "user", "text": 1}]', "Message 1 of the prompt has no role and cont"),
        (CHATML, '[{"role": "user", "content": "a"}, 7]', "Message 2 of the prompt has no role"),
    ],
)
def test_a_chat_that_cannot_be_made_is_said_in_one_sentence(chatty, template, text, sentence):
    with pytest.raises(UsageError) as error:
        chat_prompt(chatty(template), text)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).count(". ") == 0


def test_a_name_is_the_token_it_names(chatty):
    lm = chatty()
    for name in ("<0xF0>", " ", "the", "</s>"):
        assert lm.tokenizer.token(token_id(lm, name)) == name
    with pytest.raises(UsageError, match="“⟨202E⟩x↵y” is not one token"):
        token_id(lm, "\u202ex\ny")


def test_importing_it_does_not_import_torch():
    code = "import sys, saelab.lm.prompt; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
