"""Questions as a file, and answers from one, ours and those of OpenAI's batch interface."""

import json

import pytest

from saelab.clients.files import read_answers, write_questions
from saelab.clients.question import Answer, Question
from saelab.config import UsageError

QUESTIONS = [Question(f"explain/{n}", "be brief", f"text {n} \u202e\n", 10) for n in range(3)]
KEYS = [question.key for question in QUESTIONS]


def lines(path, *values):
    path.write_text("\n".join(json.dumps(value) for value in values) + "\n\n")
    return path


def test_a_question_is_a_request_of_the_batch_interface(tmp_path):
    write_questions(tmp_path / "q.jsonl", QUESTIONS, "some-model")
    found = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in found] == KEYS
    assert found[1]["body"]["messages"] == QUESTIONS[1].messages
    assert (found[0]["body"]["model"], found[0]["body"]["max_tokens"]) == ("some-model", 10)


def test_answers_are_read_in_both_forms_and_failures_counted(tmp_path):
    body = {"choices": [{"message": {"content": "b"}}], "usage": {"prompt_tokens": 5,
            "completion_tokens": 2}}  # fmt: skip
    path = lines(
        tmp_path / "a.jsonl",
        {"custom_id": KEYS[0], "answer": " a\x1b \n"},
        {"custom_id": KEYS[1], "response": {"status_code": 200, "body": body}},
        {"custom_id": KEYS[2], "response": None, "error": {"message": "expired"}},
    )
    answers, n_failed = read_answers(path, set(KEYS))
    assert answers == {KEYS[0]: Answer("a⟨001B⟩"), KEYS[1]: Answer("b", 5, 2)}
    assert n_failed == 1


@pytest.mark.parametrize(
    ("value", "said"),
    [({"answer": "a"}, "Line 1 of .* has no custom_id"), ([], "has no custom_id"),
     ({"custom_id": "explain/0/ffffffffffff", "answer": "a"}, "not asked here"),
     ({"custom_id": KEYS[0], "answer": 3}, "holds no answer"),
     ({"custom_id": KEYS[0], "response": {"body": {"choices": []}}}, "holds no answer")],
)  # fmt: skip
def test_other_lines_are_refused(tmp_path, value, said):
    with pytest.raises(UsageError, match=said):
        read_answers(lines(tmp_path / "a.jsonl", value), set(KEYS))


def test_the_key_changes_with_the_text_only():
    same = Question("explain/0", QUESTIONS[0].system, QUESTIONS[0].user, 99)
    other = Question("explain/0", QUESTIONS[0].system, QUESTIONS[1].user, 10)
    assert same.key == KEYS[0]
    assert other.key != KEYS[0]
