"""A local model's answers equal those of plain transformers, whatever it was asked before."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from saelab.clients.local import LocalClient
from saelab.clients.question import FailedError, Question
from saelab.config import UsageError
from saelab.lm.causal import CausalChat

CHATS = [["her", "the dog"], ["her", "the cat under her"], ["the", "dog"], ["her", "the dog"]]


def messages(parts):
    return [{"role": r, "content": c} for r, c in zip(("system", "user"), parts, strict=True)]


@pytest.fixture(scope="module")
def chat(checkpoint):
    return CausalChat(str(checkpoint), device="cpu")


@pytest.fixture(scope="module")
def plain(checkpoint):
    return AutoModelForCausalLM.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(
        checkpoint
    )


@pytest.mark.parametrize("parts", CHATS)
def test_answers_are_those_of_greedy_generation(chat, plain, parts):
    model, tokenizer = plain
    ids = tokenizer(f"<bos> {parts[0]}\n\n{parts[1]}\n\n", return_tensors="pt").input_ids
    wanted = model.generate(
        ids, max_new_tokens=6, do_sample=False, pad_token_id=0, attention_mask=torch.ones_like(ids)
    )[0, ids.shape[1] :].tolist()
    end = wanted.index(0) if 0 in wanted else len(wanted)
    text, n_read, n_written = chat.answer(messages(parts), 6)
    assert text == tokenizer.decode(wanted[:end], skip_special_tokens=True)
    assert (n_read, n_written) == (ids.shape[1], end)


@pytest.mark.parametrize("parts", CHATS)
def test_chances_are_those_of_a_fresh_pass(chat, plain, parts):
    model, tokenizer = plain
    ids = tokenizer(f"<bos> {parts[0]}\n\n{parts[1]}\n\n", return_tensors="pt").input_ids
    logits = model(ids).logits[0, -1].double()
    words = ["dog", "cat"]
    wanted = logits[tokenizer.convert_tokens_to_ids(words)].softmax(0)
    found, n_read = chat.chances(messages(parts), words)
    assert torch.tensor(found).double() == pytest.approx(wanted.detach(), abs=1e-5)
    assert n_read == ids.shape[1]


def test_words_that_begin_alike_cannot_be_told_apart(chat):
    with pytest.raises(UsageError, match="same first token for several of yes, no"):
        chat.chances(messages(CHATS[0]), ["yes", "no"])


def test_a_chat_that_is_too_long_fails_alone(checkpoint):
    client = LocalClient(checkpoint, device="cpu")
    with pytest.raises(FailedError, match="too long for") as caught:
        client.answer(Question("explain/1", "the", "dog " * 40, 4))
    assert not caught.value.again
    answer = client.answer(Question("explain/1", "the", "dog", 4, ("dog", "cat")))
    assert answer.text in ("dog", "cat")
    assert sum(answer.chances or ()) == pytest.approx(1)
