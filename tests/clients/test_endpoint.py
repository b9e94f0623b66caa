"""An endpoint may fail, be slow, or answer anything: its answers stay within bounds."""

import math

import pytest
from clients.scripted import KEY, Script, completion, drip, serving

from saelab.clients.endpoint import EndpointClient, chances
from saelab.clients.question import LONGEST_ANSWER, Answer, FailedError, Question
from saelab.config import UsageError

QUESTION = Question("explain/1", "be brief", "what?", 20, ("yes", "no"))


@pytest.fixture(autouse=True)
def key(monkeypatch):
    for name in ("OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture(scope="module")
def script():
    """One server for all; each test writes its own reply."""
    with serving(Script(lambda n, body: (500, {}, {}))) as one:
        yield one


def answer(script, status, values, headers=None, timeout=5.0):
    script.reply = lambda n, body: (status, values, headers or {})
    return EndpointClient("m", base_url=script.url, timeout=timeout).answer(QUESTION)


def test_an_answer_comes_with_what_it_cost_and_its_chances(script):
    top = [("Yes", 0.6), (" yes", 0.15), ("no", 0.25), ("maybe", 0.0001)]
    logs = [{"token": t, "logprob": math.log(p)} for t, p in top]
    values = completion("Yes.", logprobs={"content": [{"top_logprobs": logs}]})
    found = answer(script, 200, values)
    assert (found.text, found.prompt_tokens, found.completion_tokens) == ("Yes.", 100, 10)
    assert found.chances == pytest.approx((0.75, 0.25))
    assert script.keys == {f"Bearer {KEY}"}


@pytest.mark.parametrize("logs", [None, [], {"content": []}, {"content": [{"top_logprobs": []}]},
    {"content": [{"top_logprobs": [{"token": 3, "logprob": -1}]}]},
    {"content": [{"top_logprobs": [{"token": "yes", "logprob": 5.0}]}]}])  # fmt: skip
def test_log_probabilities_of_another_form_are_none(logs):
    assert chances(logs, ("yes", "no")) is None


@pytest.mark.parametrize(
    ("status", "values", "said", "paid"),
    [(200, b"not json", "not whole JSON", True), (200, b"", "not whole JSON", True),
     (200, b"[" * 10**5, "nested", True), (200, {"choices": []}, "no text", True),
     (200, completion(None), "no text", True), (200, completion({"a": 1}), "no text", True),
     (200, completion("  \n"), "no text", True), (200, [], "no text", True),
     (200, b" " * (2**22 + 1), "more than", True), (500, {"error": "x"}, "answers 500", False),
     (429, b"slow down", "answers 429: slow down", False), (418, b"\xff\x1b", "418", False)],
)  # fmt: skip
def test_a_malformed_answer_fails_this_request_alone(script, status, values, said, paid):
    with pytest.raises(FailedError, match=said) as caught:
        answer(script, status, values)
    assert caught.value.paid is paid
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("status", "said"), [(401, "refuses the key in OPENAI_API_KEY"), (403, "refuses"),
                         (404, "no model 'm'"), (307, "no model 'm', or none there")],
)  # fmt: skip
def test_what_no_question_can_succeed_with_is_one_sentence(script, status, said):
    script.keys.clear()
    with pytest.raises(UsageError, match=said) as caught:
        answer(script, status, {"error": f"bad key {KEY}"}, {"Location": f"{script.url}/x"})
    assert KEY not in str(caught.value)
    assert "[key]" in str(caught.value)


def test_a_server_that_never_ends_is_left(script):
    for status, body in ((200, drip(b" ", 0.02, 10**6)), (500, drip(b"x" * 4096, 0.0, 10**6))):
        with pytest.raises(FailedError):
            answer(script, status, body, timeout=0.3)
    with pytest.raises(FailedError, match="no answer in") as caught:
        answer(script, 200, drip(b"", 1.0, 1), timeout=0.2)
    assert caught.value.paid


def test_hostile_text_is_bounded_visible_and_without_the_key(script):
    text = f"\x1b[2J\u202e{KEY}\n" + "y" * 10**5
    found = answer(script, 200, completion(text) | {"usage": {"prompt_tokens": -5}})
    assert found == Answer(found.text)
    assert found.text.startswith("⟨001B⟩[2J⟨202E⟩[key]\ny")
    assert len(found.text) <= LONGEST_ANSWER + 20


def test_the_wait_that_a_server_asks_for_is_told(script):
    for text, wait in (("7", 7.0), ("soon", None), ("-1", None), ("inf", None)):
        with pytest.raises(FailedError) as caught:
            answer(script, 429, b"", {"Retry-After": text})
        assert caught.value.wait == wait


def test_an_option_that_a_server_refuses_is_left_out_from_then_on(script):
    seen = []

    def reply(_, body):
        seen.append(body)
        for name in ("max_tokens", "temperature", "logprobs"):
            if name in body:
                return 400, {"error": {"message": f"Unsupported parameter: {name!r}"}}, {}
        return 200, completion("fine"), {}

    script.reply = reply
    client = EndpointClient("m", base_url=script.url)
    for _ in range(3):
        with pytest.raises(FailedError) as caught:
            client.answer(QUESTION)
        assert caught.value.again
    assert client.answer(QUESTION).text == "fine"
    assert seen[-1]["max_completion_tokens"] == QUESTION.max_tokens
    assert not {"temperature", "logprobs", "top_logprobs"} & seen[-1].keys()


def test_a_closed_port_costs_nothing(script):
    with pytest.raises(FailedError) as caught:
        EndpointClient("m", base_url="http://127.0.0.1:9/v1", timeout=2.0).answer(QUESTION)
    assert not caught.value.paid


@pytest.mark.parametrize(
    "address", ["ftp://x/v1", "x", "http://", f"http://me:{KEY}@x/v1", f"http://x/v1?key={KEY}",
                f"me:{KEY}@x", "http://[x", "http://x:99999/"],
)  # fmt: skip
def test_an_address_without_secrets_is_asked_for(address):
    with pytest.raises(UsageError, match="--base-url") as caught:
        EndpointClient("m", base_url=address)
    assert KEY not in str(caught.value)


def test_openai_itself_needs_a_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UsageError, match="no key in the environment variable OPENAI_API_KEY"):
        EndpointClient("m")
