"""Asking a client many questions: paced, retried, within a budget, stoppable at any time."""

import math
import random
import threading
import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from saelab.clients.ledger import Ledger
from saelab.clients.question import Client, FailedError, Question
from saelab.console import Bar, progress, say

SPARE = 1.2
"""Requests and tokens of the default budget, as a multiple of those without a failure."""
SPARE_REQUESTS = 10
IN_A_ROW = 20
"""Failures without an answer between them, after which nobody is asked any more."""
LONGEST_WAIT = 120.0
"""Seconds between two attempts, at most."""


@dataclass(frozen=True)
class Budget:
    """The most that all requests for some questions may take, those of earlier processes included.

    Attributes:
        requests: failed ones count.
        tokens: of prompts and answers.
    """

    requests: int
    tokens: int

    @classmethod
    def of(
        cls, questions: Collection[Question], requests: int | None, tokens: int | None
    ) -> "Budget":
        """The given limits; by default enough for all questions if few requests fail."""
        most = sum(question.most_tokens for question in questions)
        return cls(
            requests or math.ceil(SPARE * len(questions)) + SPARE_REQUESTS,
            tokens or math.ceil(SPARE * most) + SPARE_REQUESTS,
        )


@dataclass(frozen=True)
class Pacing:
    """How requests follow each other.

    Attributes:
        per_minute: requests begun in a minute, at most; None for no limit.
        attempts: requests for one question, at most.
        backoff: seconds before the second attempt; each later one waits twice as long.
    """

    per_minute: int | None = None
    attempts: int = 5
    backoff: float = 1.0


def announce(questions: Sequence[Question], client: Client, ledger: Ledger, budget: Budget) -> None:
    """Say what will be asked, whom, and what it may cost at most."""
    left = [question for question in questions if question.key not in ledger.answers]
    expected = sum(question.expected_tokens for question in left)
    spent = f"; {ledger.requests} and {ledger.tokens} are spent" if ledger.requests else ""
    say(
        f"{len(left)} questions for {client.model} ({client.place}): about {expected} tokens. At "
        f"most {budget.requests} requests and {budget.tokens} tokens are used (--max-requests, "
        f"--max-tokens){spent}."
    )


def ask(
    questions: Sequence[Question],
    client: Client,
    ledger: Ledger,
    budget: Budget,
    pace: Pacing | None = None,
) -> str:
    """Have the client answer what the ledger has no answer to.

    Returns:
        Why it ended before all was answered, as a sentence; empty if all was.

    Raises:
        UsageError: no question can succeed (wrong key, model gone).
        OSError: an answer could not be kept.
    """
    left = deque(question for question in questions if question.key not in ledger.answers)
    done = len(questions) - len(left)
    with progress("Answers", len(questions), "answers", done) as bar:
        asking = _Asking(left, client, ledger, budget, pace or Pacing(), bar)
        return asking.run()


@dataclass
class _Asking:
    """The state that the threads of one `ask` share; `turn` guards it."""

    left: deque[Question]
    client: Client
    ledger: Ledger
    budget: Budget
    pace: Pacing
    bar: Bar
    turn: threading.Condition = field(default_factory=threading.Condition)
    stopped: threading.Event = field(default_factory=threading.Event)
    why: str = ""
    error: BaseException | None = None
    in_flight: int = 0
    in_a_row: int = 0
    n_failed: int = 0
    n_unsent: int = 0
    given_up: int = 0
    last: FailedError | None = None
    next_start: float = 0.0

    def run(self) -> str:
        if self.client.kind == "local":
            # In this thread: a signal ends an answer that costs nothing, and no thread is left in
            # the midst of a computation when the process ends.
            try:
                self._work()
            finally:
                self._close()
            return self._ending()
        n = max(1, min(self.client.parallel, len(self.left)))
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(n)]
        for thread in threads:
            thread.start()
        try:
            _join(threads)
        except BaseException:
            self._stop("")
            if self.in_flight:
                say(f"waiting for {self.in_flight} answers that are under way ...")
            _join(threads)
            raise
        finally:
            self._close()
        return self._ending()

    def _ending(self) -> str:
        if self.error is not None:
            raise self.error
        if self.why or not self.given_up:
            return self.why
        n = self.pace.attempts
        tried = f"up to {n} attempts" if n > 1 else "1 attempt"
        return (
            f"{self.given_up} questions have no answer after {tried}; the last one failed: "
            f"{self.last}."
        )

    def _close(self) -> None:
        """Close the ledger, or remove it if it says no more than that nobody was reached."""
        if self.n_unsent == self.ledger.requests and not self.ledger.answers:
            self.ledger.forget()
        else:
            self.ledger.close()

    def _work(self) -> None:
        try:
            while (question := self._next()) is not None:
                self._ask(question)
        except BaseException as error:  # noqa: BLE001 - raised by `run`, in its own thread
            with self.turn:
                self.error = self.error or error
            self._stop("")

    def _next(self) -> Question | None:
        with self.turn:
            return self.left.popleft() if self.left and not self.stopped.is_set() else None

    def _ask(self, question: Question) -> None:
        for attempt in range(self.pace.attempts):
            if not self._begin(question):
                return
            try:
                answer = self.client.answer(question)
            except FailedError as error:
                self._ended(question, error)
                if not error.again:
                    break
                wait = self.pace.backoff * 2**attempt * random.uniform(0.5, 1.5)
                if attempt + 1 < self.pace.attempts:
                    self.stopped.wait(min(wait, LONGEST_WAIT))
            except BaseException:
                self._ended(question, None)
                raise
            else:
                self.ledger.answered(question, answer)
                with self.turn:
                    self.in_flight -= 1
                    self.in_a_row = 0
                    self.bar.advance(1, f"{self.n_failed} failed" if self.n_failed else "")
                    self.turn.notify_all()
                return
        with self.turn:
            self.given_up += 1

    def _begin(self, question: Question) -> bool:
        """Wait for the pace and the budget; False if nothing is asked any more."""
        with self.turn:
            start = max(time.monotonic(), self.next_start)
            if self.pace.per_minute:
                self.next_start = start + 60 / self.pace.per_minute
        self.stopped.wait(max(0.0, start - time.monotonic()))
        with self.turn:
            while not self.stopped.is_set():
                if self.ledger.reserve(question, self.budget.requests, self.budget.tokens):
                    self.in_flight += 1
                    return True
                if not self.in_flight:
                    self._stop(_passed(self.ledger, self.budget, question))
                    return False
                # An answer costs less than the most that was reserved for it.
                self.turn.wait()
        return False

    def _ended(self, question: Question, error: FailedError | None) -> None:
        """Enter a failure, and stop if there are too many."""
        paid = error is not None and error.paid
        self.ledger.failed(question, question.most_tokens if paid else 0)
        with self.turn:
            self.in_flight -= 1
            self.n_failed += 1
            self.in_a_row += 1
            self.n_unsent += error is not None and not error.sent
            self.last = error or self.last
            if error is not None and error.wait:
                pause = time.monotonic() + min(error.wait, LONGEST_WAIT)
                self.next_start = max(self.next_start, pause)
            self.turn.notify_all()
        if self.in_a_row >= IN_A_ROW:
            self._stop(f"{self.in_a_row} requests failed in a row; the last one: {error}.")

    def _stop(self, why: str) -> None:
        with self.turn:
            self.why = self.why or why
            self.stopped.set()
            self.turn.notify_all()


def _join(threads: Sequence[threading.Thread]) -> None:
    for thread in threads:
        # In pieces: a wait without a limit hears no signal.
        while thread.is_alive():
            thread.join(0.1)


def _passed(ledger: Ledger, budget: Budget, question: Question) -> str:
    if ledger.requests >= budget.requests:
        return f"The budget of {budget.requests} requests is used; raise --max-requests to go on."
    return (
        f"{ledger.tokens} of {budget.tokens} tokens are used, and the next question may take "
        f"{question.most_tokens}; raise --max-tokens to go on."
    )
