"""What was asked and answered is kept as it happens, and counted once."""

import json

import pytest

from saelab.clients.ledger import Ledger
from saelab.clients.question import Answer, Question
from saelab.config import UsageError

ONE, TWO = (Question(f"explain/{n}", "system", "user", 10) for n in (1, 2))
MOST = ONE.most_tokens


def test_answers_and_what_they_cost_come_back_from_the_file(tmp_path):
    ledger = Ledger(tmp_path / "asked.jsonl")
    assert ledger.reserve(ONE, 9, 9000)
    assert (ledger.requests, ledger.tokens) == (1, MOST)
    ledger.answered(ONE, Answer("a\u202eb", 7, 5, (0.25, 0.75)))
    assert ledger.reserve(TWO, 9, 9000)
    ledger.failed(TWO, 3)
    ledger.close()
    again = Ledger(ledger.path)
    assert again.answers == ledger.answers == {ONE.key: Answer("a\u202eb", 7, 5, (0.25, 0.75))}
    assert (again.requests, again.tokens) == (ledger.requests, ledger.tokens) == (2, 15)


def test_a_request_without_its_end_counts_as_the_most_that_it_may_cost(tmp_path):
    ledger = Ledger(tmp_path / "asked.jsonl")
    ledger.reserve(ONE, 9, 9000)
    ledger.close()
    again = Ledger(ledger.path)
    assert (again.requests, again.tokens) == (1, MOST)
    assert again.reserve(ONE, 9, 9000)
    again.answered(ONE, Answer("x", 1, 1))
    assert (again.requests, again.tokens) == (2, MOST + 2)


def test_nothing_is_sent_that_may_pass_the_budget(tmp_path):
    ledger = Ledger(tmp_path / "asked.jsonl")
    assert not ledger.reserve(ONE, 0, 9000)
    assert not ledger.reserve(ONE, 9, MOST - 1)
    assert not ledger.path.exists()
    assert ledger.reserve(ONE, 1, MOST)
    assert not ledger.reserve(TWO, 1, 9000)


def test_a_line_cut_by_a_kill_is_dropped_and_the_file_goes_on(tmp_path):
    ledger = Ledger(tmp_path / "asked.jsonl")
    ledger.add([(ONE.key, Answer("one"))])
    ledger.close()
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(whole + b'{"answered": "explain/2')
    again = Ledger(ledger.path)
    again.add([(TWO.key, Answer("two"))])
    again.close()
    assert Ledger(ledger.path).answers == {ONE.key: Answer("one"), TWO.key: Answer("two")}
    assert ledger.path.read_bytes().startswith(whole)


@pytest.mark.parametrize(
    "line",
    ["[]", '{"sent": "k", "tokens": -1}', '{"answered": "k", "text": 3}', "{", '{"sent": NaN}',
     json.dumps({"answered": "k", "text": "x" * 5000, "prompt_tokens": 0, "completion_tokens": 0}),
     '{"answered": "k", "text": "", "prompt_tokens": 0, "completion_tokens": 0, "chances": [2]}',
     '{"sent": "' + "k" * 70000 + '"}'],
)  # fmt: skip
def test_a_damaged_line_is_refused_by_its_number(tmp_path, line):
    path = tmp_path / "asked.jsonl"
    path.write_text('{"failed": "k", "tokens": 0}\n' + line + "\n")
    with pytest.raises(UsageError, match=r"^Line 2 of "):
        Ledger(path)
