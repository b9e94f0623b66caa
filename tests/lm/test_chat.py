"""Whose each token of a conversation is, through templates of several families."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from saelab.config import UsageError
from saelab.lm.chat import TEMPLATE, messages_of, render
from saelab.lm.tokenizer import HuggingFaceTokenizer

SPECIAL = ["<bos>", "<eos>", "<|im_start|>", "<|im_end|>"]
TEMPLATES = {
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + "
    "'<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}",
    "trimmed": "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n\n' + "
    "m['content'] | trim + '<|im_end|>' }}{% endfor %}",
    "default system": "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are user."
    "<|im_end|>\n{% endif %}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + "
    "m['content'] + '<|im_end|>' + '\n' }}{% endfor %}",
    "system in the first": "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ '<<SYS>>' + m['content'] + '<</SYS>>' }}{% elif m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}"
    "{{ ' ' + m['content'].split('</think>')[-1].lstrip() + eos_token }}{% endif %}{% endfor %}",
}


def tokenizer_with(template):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["user says the dog runs", "assistant"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<bos>", eos_token="<eos>")
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[2:]})
    tokenizer.chat_template = template
    return tokenizer


def tokens_of(tokenizer, text):
    found = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    return np.array(found["offset_mapping"]).reshape(-1, 2)


def said(role, content):
    return {"role": role, "content": content}


MESSAGES = [
    said("system", "Be\nkind."),
    said("user", "user"),
    said("assistant", "<|im_end|>\nuser"),
]


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_message_is_found_where_the_template_writes_it(name):
    """Messages that repeat the template's own words among them."""
    chat = render(HuggingFaceTokenizer(tokenizer_with(TEMPLATES[name])), MESSAGES)
    assert [turn.role for turn in chat.turns] == ["system", "user", "assistant"]
    assert [chat.text[t.start : t.stop] for t in chat.turns] == [m["content"] for m in MESSAGES]
    assert not chat.text.startswith("<bos>")


def test_a_message_whose_start_the_template_leaves_out_is_found():
    tokenizer = HuggingFaceTokenizer(tokenizer_with(TEMPLATES["system in the first"]))
    chat = render(tokenizer, [said("user", "q"), said("assistant", "<think>hm</think> yes")])
    assert [chat.text[t.start : t.stop] for t in chat.turns] == ["q", "yes"]


@settings(max_examples=60, deadline=None)
@given(
    contents=st.lists(
        st.text(st.sampled_from("user \n<|im_end|>é🙂[/INST]"), max_size=12), min_size=1, max_size=4
    ),
    name=st.sampled_from(["chatml", "trimmed"]),
)
def test_roles_of_tokens_equal_those_of_their_characters(contents, name):
    tokenizer = tokenizer_with(TEMPLATES[name])
    roles = ["user", "assistant"]
    chat = render(
        HuggingFaceTokenizer(tokenizer), [said(roles[i % 2], c) for i, c in enumerate(contents)]
    )
    whose = [TEMPLATE] * len(chat.text)
    for turn in chat.turns:
        whose[turn.start : turn.stop] = [turn.role] * (turn.stop - turn.start)
    offsets = tokens_of(tokenizer, chat.text)
    expected = []
    for start, stop in offsets:
        here = [role for role in whose[start : max(stop, start + 1)] if role != TEMPLATE]
        expected.append(here[-1] if here else TEMPLATE)
    assert chat.roles(offsets) == expected


def test_the_answer_is_opened_where_it_is_asked_for():
    tokenizer = HuggingFaceTokenizer(tokenizer_with(TEMPLATES["chatml"]))
    chat = render(tokenizer, [said("user", "hi")], answer=True)
    assert chat.text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_with_the_date_gives_the_same_text_on_every_day():
    template = "{{ strftime_now('%d %b %Y') }} {{ strftime_now('%Y-%m-%d, %B') }}"
    template += "{{ messages[0]['content'] }}"
    chat = render(HuggingFaceTokenizer(tokenizer_with(template)), [said("user", "x")])
    assert chat.text == "26 Jul 2024 2024-07-26, Julyx"


REFUSED = {
    "has no chat template": None,
    "Roles must alternate": "{{ raise_exception('Roles must alternate') }}",
    "message 1 not once": "{{ messages[1]['content'] }}",
    "changes with what the messages say": "{% if messages[0]['content'] == 'a' %}b{% endif %}"
    "{{ messages[0]['content'] }}{{ messages[1]['content'] }}",
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_template_that_cannot_be_followed_is_refused_in_a_sentence(message):
    tokenizer = HuggingFaceTokenizer(tokenizer_with(REFUSED[message]))
    with pytest.raises(UsageError, match=message):
        render(tokenizer, [said("user", "a"), said("assistant", "a")])


def test_a_tokenizer_of_another_kind_has_no_template():
    with pytest.raises(UsageError, match="tiny has no chat template"):
        render(object(), [said("user", "a")], model="tiny")


def test_contents_in_parts_are_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert messages_of([{"role": "user", "content": parts}], "x") == [said("user", "ab")]


@pytest.mark.parametrize(
    "value",
    [
        None, [], "hello", ["hello"], [{"role": "user"}], [{"role": " ", "content": "a"}],
        [{"role": "user", "content": None}], [{"role": 1, "content": "a"}],
        [{"role": "user", "content": [{"type": "image"}]}],
        [{"role": "user", "content": []}],
    ],
)  # fmt: skip
def test_what_are_no_messages_is_refused_with_its_place(value):
    with pytest.raises(UsageError, match=r"^f\.jsonl, line 3: "):
        messages_of(value, "f.jsonl, line 3")
