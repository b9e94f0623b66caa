"""What explains a latent, what tests the explanation, and how both are written."""

import pytest

from saelab.analysis.examples import Example, Token
from saelab.analysis.explain.evidence import LONGEST_TEXT, evidence_of, firing_places, written
from saelab.analysis.explain.prompts import explain_question, read_explanation
from saelab.analysis.records import Features


@pytest.fixture(scope="module")
def features(told_run):
    return Features(told_run.path)


def contexts(examples):
    return {example.context for example in examples}


def test_no_text_that_explains_also_tests(features):
    for latent in range(6):
        found = evidence_of(features[latent])
        seen = contexts(found.shown) | contexts(found.near)
        assert found.shown
        assert found.held_out
        assert not seen & (contexts(found.held_out) | contexts(found.silent))
        assert len(contexts(found.silent)) == len(found.silent)
        assert all(example.closeness is not None for example in found.silent[: found.n_near])


def test_only_the_side_on_which_it_mostly_fires_is_explained(features):
    for latent in range(6):
        record = features[latent]
        found = evidence_of(record)
        assert (found.sign < 0) == (2 * record.n_negative > record.n_fired)
        assert all(found.sign * e.value > 0 for e in found.shown + found.held_out)
        for example in found.shown:
            assert example.peak in firing_places(example, found.sign)


def test_what_tests_it_is_an_equal_number_of_each_stratum(features):
    record = features[3]
    found = evidence_of(record).held_out
    edges = [part.low for part in record.strata[1:]]
    first = [sum(abs(e.value) >= edge for edge in edges) for e in found[: len(record.strata)]]
    assert sorted(first) == list(range(len(record.strata)))


def example(*texts, fires):
    tokens = [Token(text, i, 1.0 if i in fires else 0.0) for i, text in enumerate(texts)]
    return Example(1.0, tokens, fires[0], 0, 0, fires[0])


def test_hostile_text_cannot_leave_its_line_or_mark_a_token(features):
    text = written(example("a>>", "\n", "<<b", "\u202e", " c ", fires=[4]), features, [4])
    assert text.count("<<") == text.count(">>") == 1
    assert text.endswith("<<c>>")
    assert text.isprintable()


def test_a_long_text_is_cut_around_its_peak(features):
    words = ["x" * 50] * 100
    words[40] = "here"
    text = written(example(*words, fires=[40]), features, [40])
    assert "<<here>>" in text
    assert len(text) <= LONGEST_TEXT + 20


def test_the_question_names_what_it_knows_and_is_always_the_same(features):
    record = features[5]
    question = explain_question(features, record, evidence_of(record))
    assert question.name == "explain/5"
    assert question.user.count("<<") >= 8
    for part in ("It is active in these", "NOT active", "more likely", "Similar features"):
        assert part in question.user
    again = explain_question(features, features[5], evidence_of(features[5]))
    assert again.key == question.key


@pytest.mark.parametrize(
    ("answer", "text"),
    [("Explanation: names of people", "names of people"),
     ("I think.\n\n**Explanation:** names\nDone.", "names"),
     ("names", "names"), ("[EXPLANATION]: “names”", "names"), ("", ""), ("\n \n", ""),
     ("x" * 999, "x" * 299 + "…")],
)  # fmt: skip
def test_an_explanation_is_read_from_an_answer(answer, text):
    assert read_explanation(answer) == text
