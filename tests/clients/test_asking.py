"""Many questions: each answered once, within the budget, whatever fails or stops."""

import signal
import threading
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import pytest

from saelab.clients.asking import IN_A_ROW, Budget, Pacing, ask
from saelab.clients.ledger import Ledger
from saelab.clients.question import Answer, FailedError, Question
from saelab.config import UsageError
from saelab.interrupt import Stopped

# Of one length: which of them finds the budget used is a matter of threads, and its cost is said.
QUESTIONS = [Question(f"explain/{n}", "s", f"text {n}", 8) for n in range(10, 50)]
QUICK = Pacing(attempts=4, backoff=0.001)
PLENTY = Budget.of(QUESTIONS, None, None)


class Scripted:
    """Answers by a function of the question and of how often it was asked."""

    model, kind, place, parallel = "scripted", "test", "here", 6

    def __init__(self, reply):
        self.reply, self.asked, self.most = reply, Counter(), 0
        self._now, self._turn = 0, threading.Lock()

    def answer(self, question):
        with self._turn:
            self.asked[question.key] += 1
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            return self.reply(question, self.asked[question.key])
        finally:
            with self._turn:
                self._now -= 1


def fine(question, times):
    return Answer(f"{question.name} {times}", 4, 2)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "asked.jsonl")


def test_every_question_is_asked_once_and_some_at_a_time(ledger):
    client = Scripted(fine)
    assert ask(QUESTIONS, client, ledger, PLENTY, QUICK) == ""
    assert set(client.asked.values()) == {1}
    assert 1 <= client.most <= client.parallel
    assert Ledger(ledger.path).answers == {q.key: Answer(f"{q.name} 1", 4, 2) for q in QUESTIONS}
    assert ask(QUESTIONS, client, Ledger(ledger.path), PLENTY, QUICK) == ""
    assert client.asked.total() == len(QUESTIONS)


def test_a_failed_request_is_repeated_and_counts(ledger):
    def reply(question, times):
        if times < 3 and question in QUESTIONS[::10]:
            raise FailedError("busy", paid=times == 1)
        return fine(question, times)

    budget = Budget(100, 10**6)
    assert ask(QUESTIONS, Scripted(reply), ledger, budget, QUICK) == ""
    assert ledger.requests == len(QUESTIONS) + 2 * 4
    assert ledger.tokens == 6 * len(QUESTIONS) + sum(q.most_tokens for q in QUESTIONS[::10])


@pytest.mark.parametrize(
    "budget", [Budget(17, 10**9), Budget(10**9, 3 * QUESTIONS[0].most_tokens)],
    ids=["requests", "tokens"],
)  # fmt: skip
def test_the_budget_is_used_and_never_passed(ledger, budget):
    client = Scripted(fine)
    why = ask(QUESTIONS, client, ledger, budget, QUICK)
    assert "raise --max-" in why
    assert ledger.requests <= budget.requests
    assert ledger.tokens <= budget.tokens
    # What is left would not be enough for the most that another answer may cost.
    full = ledger.requests == budget.requests
    assert full or ledger.tokens > budget.tokens - QUESTIONS[-1].most_tokens
    again = Ledger(ledger.path)
    assert ask(QUESTIONS, client, again, budget, QUICK) == why
    assert client.asked.total() == ledger.requests


def test_questions_that_never_succeed_are_given_up_and_said(ledger):
    def reply(question, times):
        if question in QUESTIONS[:2]:
            raise FailedError("no", again=question is QUESTIONS[0])
        return fine(question, times)

    client = Scripted(reply)
    assert "2 questions have no answer" in ask(QUESTIONS, client, ledger, PLENTY, QUICK)
    assert len(ledger.answers) == len(QUESTIONS) - 2
    assert client.asked[QUESTIONS[0].key] == QUICK.attempts
    assert client.asked[QUESTIONS[1].key] == 1


def test_a_server_that_is_down_is_left_soon(ledger):
    def reply(question, times):
        raise FailedError("down")

    client = Scripted(reply)
    why = ask(QUESTIONS, client, ledger, PLENTY, QUICK)
    assert "failed in a row; the last one: down" in why
    assert client.asked.total() <= IN_A_ROW + client.parallel
    assert Ledger(ledger.path).requests == client.asked.total()


def test_a_ledger_stays_unless_nobody_was_ever_reached(ledger):
    def lost(question, times):
        raise FailedError("refused", sent=False)

    some = QUESTIONS[:2]
    assert ask(some, Scripted(lost), ledger, PLENTY, QUICK).endswith("failed: refused.")
    assert not ledger.path.exists()
    ask(some[:1], Scripted(fine), Ledger(ledger.path), PLENTY, QUICK)
    ask(some, Scripted(lost), Ledger(ledger.path), PLENTY, QUICK)
    assert set(Ledger(ledger.path).answers) == {some[0].key}


@pytest.mark.parametrize("error", [UsageError("wrong key"), OSError(28, "full"), KeyError("bug")])
def test_what_ends_all_is_raised_and_answers_stay(ledger, error):
    def reply(question, times):
        if question is QUESTIONS[20]:
            raise error
        return fine(question, times)

    with pytest.raises(type(error)):
        ask(QUESTIONS, Scripted(reply), ledger, PLENTY, QUICK)
    kept = Ledger(ledger.path)
    assert 15 <= len(kept.answers) < 40
    assert kept.tokens == 6 * len(kept.answers)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for the waits of `ask`; a list of its one time."""
    now = [1000.0]
    wait = threading.Event.wait

    def waited(self, seconds=None):
        # Threads that start wait without a limit.
        if seconds is None:
            return wait(self)
        now[0] += seconds
        return False

    monkeypatch.setattr(threading.Event, "wait", waited)
    monkeypatch.setattr("saelab.clients.asking.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_a_wait_that_a_server_asks_for_is_waited(ledger, clock):
    starts = []

    def reply(question, times):
        starts.append(clock[0])
        if len(starts) == 1:
            raise FailedError("busy", wait=50.0)
        return fine(question, times)

    client = Scripted(reply)
    client.parallel = 1
    assert ask(QUESTIONS[:3], client, ledger, PLENTY, Pacing(backoff=0.0)) == ""
    assert [round(start - starts[0]) for start in starts] == [0, 50, 50, 50]


def test_requests_keep_their_distance_and_failed_ones_wait_twice_as_long_each_time(ledger, clock):
    starts = []

    def reply(question, times):
        starts.append(clock[0])
        if len(starts) > 5:
            raise FailedError("busy")
        return fine(question, times)

    client = Scripted(reply)
    client.parallel = 1
    ask(QUESTIONS[:6], client, ledger, PLENTY, Pacing(per_minute=30, attempts=5, backoff=8.0))
    gaps = [b - a for a, b in pairwise(starts)]
    assert gaps[:5] == pytest.approx([2.0] * 5)
    assert [round(gap / 8 / 2**n, 3) for n, gap in enumerate(gaps[5:])] == pytest.approx(
        [1.0] * 4, abs=0.5
    )


def test_a_local_model_answers_in_this_thread_and_a_stop_leaves_nothing_running(ledger):
    def stopped_at_the_third(question, times):
        assert threading.current_thread() is threading.main_thread()
        if question is QUESTIONS[2]:
            raise Stopped(signal.SIGTERM)
        return fine(question, times)

    client = Scripted(stopped_at_the_third)
    client.kind = "local"
    with pytest.raises(Stopped):
        ask(QUESTIONS, client, ledger, PLENTY, QUICK)
    assert len(Ledger(ledger.path).answers) == 2
    client.reply = fine
    assert ask(QUESTIONS, client, Ledger(ledger.path), PLENTY, QUICK) == ""
    assert [n for n in client.asked.values() if n > 1] == [2]
