"""Labels of a row: every form that it may have, every form that it may not, and token by token."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saelab.activations.documents import Origin
from saelab.activations.marks import Mark, Value, marks_of, token_table
from saelab.config import UsageError

HERE = Origin("f.jsonl", 3)
TEXT = "Alice saw the  cat.\n"


def columns_of(row, names=(), text=TEXT):
    return {
        (mark.value.column, mark.start, mark.stop)
        for mark in marks_of(row, names, text, HERE)
        if mark.value.holds
    }


def test_labels_of_a_document_in_every_form():
    row = {
        "labels": {
            "mood": "calm",
            "spam": True,
            "new": False,
            "old": None,
            "stars": 4,
            "tags": ["a", 2],
        },
        "lang": "en",
        "other": "ignored",
    }
    names = {"mood=calm", "spam", "stars=4", "tags=a", "tags=2", "lang=en"}
    assert columns_of(row, ["lang"]) == {(name, None, None) for name in names}
    assert Mark(Value("new", holds=False)) in marks_of(row, (), TEXT, HERE)


def test_tokens_carry_a_value_each():
    row = {"tokens": ["Alice", "saw"], "labels": {"pos": ["PROPN", "VERB"], "name": [True, False]}}
    expected = {("pos=PROPN", 0, 5), ("pos=VERB", 6, 9), ("name", 0, 5)}
    assert columns_of(row) == expected


def test_spans_are_marks_of_their_characters():
    row = {"spans": [{"start": 0, "end": 5, "label": "person", "by": "me"}]}
    assert columns_of(row) == {("person", 0, 5)}


BAD = {
    "not an object such as": {"labels": ["calm"]},
    "--labels none": {"labels": 3},
    "the range in which": {"labels": {"stars": 4.5}},
    "or a list of these": {"labels": {"a": {"b": 1}}},
    "3 values for 2 tokens": {"tokens": ["Alice", "saw"], "labels": {"pos": ["a", "b", "c"]}},
    "'Bob' does not occur in the text behind character 0": {"tokens": ["Bob"]},
    "behind character 9": {"tokens": ["saw", "Alice"]},
    "not a list of texts": {"tokens": ["a", ""]},
    "'spans' holds 'Alice', not a list": {"spans": "Alice"},
    "is not of the form": {"spans": [[0, 5, "person"]]},
    "not of the form": {"spans": [{"start": 0, "end": True, "label": "person"}]},
    "of the form": {"spans": [{"start": 0, "end": 5, "label": 1}]},
    "which has 20 characters": {"spans": [{"start": 0, "end": 21, "label": "person"}]},
    "does not lie in the text": {"spans": [{"start": 5, "end": 5, "label": "person"}]},
    "start counts from 0": {"spans": [{"start": -1, "end": 5, "label": "person"}]},
}


@pytest.mark.parametrize("message", BAD)
def test_every_wrong_form_is_one_sentence_with_its_place(message):
    with pytest.raises(UsageError) as caught:
        marks_of(BAD[message], (), TEXT, HERE)
    assert str(caught.value).startswith("f.jsonl, line 3: ")
    assert message in str(caught.value)


@st.composite
def cut_texts(draw):
    """A text, the characters of its tokens in order, some of which share a character, and spans."""
    text = draw(st.text(st.sampled_from("ab \n🙂"), min_size=1, max_size=20))
    offsets, at = [], 0
    while at < len(text):
        stop = draw(st.integers(at, len(text)))
        # Of a character in several bytes, several tokens stand for the same one.
        offsets += [(at, stop)] * (draw(st.integers(1, 3)) if stop == at + 1 else 1)
        at = max(stop, at + 1)
    bounds = st.integers(0, len(text) - 1)
    spans = draw(st.lists(st.tuples(bounds, bounds), max_size=4))
    return text, offsets, [(min(s), max(s) + 1) for s in spans]


@given(case=cut_texts())
def test_tokens_of_a_stretch_are_those_that_share_a_character_with_it(case):
    text, offsets, spans = case
    marks = [Mark(Value("x"), start, stop) for start, stop in spans]
    found = token_table(marks, {"x": 0}, text, np.array(offsets).reshape(-1, 2))[:, 0]
    wanted = set()
    for start, stop in spans:
        inside = [i for i in range(start, stop) if not text[i].isspace()] or [start, stop - 1]
        wanted |= set(range(inside[0], inside[-1] + 1))
    expected = [any(i in wanted for i in range(a, max(b, a + 1))) for a, b in offsets]
    assert found.tolist() == expected
