import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.lm.tiny import words
from saelab.lm.tiny.grammar import generate
from saelab.lm.tiny.labels import LABEL_INDEX, LABELS, annotate
from saelab.lm.tiny.vocabulary import ID, KIND, WORDS

PAIRS = {")": "(", "]": "[", "}": "{", ">": "<"}
SHAPES = {"(": "round", "[": "square", "{": "curly", "<": "angle"}


@pytest.fixture(scope="module")
def documents():
    return generate(11, 0, 800)


def on(labels, name):
    return labels[..., LABEL_INDEX[name]]


def labelled(text, name):
    """The words of a text at which a label is on."""
    tokens = ["<bos>", *text.split()]
    labels = annotate(np.array([[ID[word] for word in tokens]]))
    return [word for word, is_on in zip(tokens, on(labels[0], name), strict=True) if is_on]


def stack_after_each(document):
    stack, out = [], []
    for word in document:
        if word in SHAPES:
            stack.append(word)
        elif stack and PAIRS.get(word) == stack[-1]:
            stack.pop()
        out.append(tuple(stack))
    return out


def in_words(documents):
    return [[WORDS[token] for token in document] for document in documents.tokens]


def test_labels_have_distinct_names_and_one_sentence_each():
    assert 30 <= len(LABELS) <= 60
    assert len({label.name for label in LABELS}) == len(LABELS)
    assert all(label.description.endswith(".") for label in LABELS)


def test_every_label_is_sometimes_on_and_sometimes_off(documents):
    density = documents.labels.mean((0, 1))
    assert density.min() > 0.0005
    assert density.max() < 0.5


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, len(WORDS) - 1), min_size=1, max_size=40), st.data())
def test_labels_of_any_prefix_ignore_what_follows(tokens, data):
    cut = data.draw(st.integers(1, len(tokens)))
    whole = annotate(np.array([tokens]))
    np.testing.assert_array_equal(annotate(np.array([tokens[:cut]])), whole[:, :cut])


def test_labels_of_a_document_ignore_a_changed_continuation(documents):
    changed = documents.tokens.copy()
    changed[:, 64:] = np.roll(changed[:, 64:], 1, axis=0)
    np.testing.assert_array_equal(annotate(changed)[:, :64], documents.labels[:, :64])


def test_bracket_depth_agrees_with_a_stack(documents):
    depth = np.array([[len(s) for s in stack_after_each(d)] for d in in_words(documents)])
    np.testing.assert_array_equal(on(documents.labels, "bracket_depth_1_or_more"), depth >= 1)
    np.testing.assert_array_equal(on(documents.labels, "bracket_depth_3_or_more"), depth >= 3)


@pytest.mark.parametrize("bracket", SHAPES)
def test_innermost_bracket_agrees_with_a_stack(documents, bracket):
    top = [[s[-1:] == (bracket,) for s in stack_after_each(d)] for d in in_words(documents)]
    np.testing.assert_array_equal(
        on(documents.labels, f"innermost_{SHAPES[bracket]}"), np.array(top)
    )


@pytest.mark.parametrize(
    ("name", "members"),
    [
        ("weekday", words.DAYS),
        ("sunday", ("sunday",)),
        ("month", words.MONTHS),
        ("name_female", words.FEMALE_NAMES),
        ("name_male", words.MALE_NAMES),
        ("year", words.YEARS),
        ("noun_plural", words.PLURAL_NOUNS),
        ("positive_word", words.POSITIVE),
        ("sentence_end", (".",)),
    ],
)
def test_token_label_is_on_exactly_at_its_words(documents, name, members):
    expected = np.isin(np.array(WORDS)[documents.tokens], members)
    np.testing.assert_array_equal(on(documents.labels, name), expected)


@pytest.mark.parametrize(
    ("name", "sign"), [("document_positive", "positive"), ("document_negative", "negative")]
)
def test_document_sentiment_starts_at_its_first_adjective(documents, name, sign):
    seen = np.cumsum(np.array(KIND)[documents.tokens] == sign, axis=1) > 0
    np.testing.assert_array_equal(on(documents.labels, name), seen)


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("the dogs near the cat run .", "subject_plural", "dogs near the cat"),
        ("the dogs near the cat run .", "attractor", "cat"),
        ("the dogs near the cats run .", "attractor", ""),
        ("the dog that the cats see runs .", "in_relative_clause", "that the cats see"),
        ("the dog that sees the cats runs .", "in_relative_clause", "that sees the cats"),
        ("the dog that sees the cats runs .", "subject_singular", "dog that sees the cats"),
        ("alice thanked bob because she was sad .", "referent_female", "alice thanked bob because"),
        ("alice thanked bob because she was sad .", "referent_male", ""),
        ("the king lost his key .", "referent_male", "king lost"),
        (
            "when mary and john went to the park , john gave a book to mary .",
            "awaiting_recipient",
            "to",
        ),
        (
            "when mary and john went to the park , john gave a book to mary .",
            "duplicate_name",
            "john mary",
        ),
        (
            "when mary and john went to the park , bob gave a book to mary .",
            "awaiting_recipient",
            "",
        ),
        ("the war lasted from 41 to 63 .", "year_range_open", "41 to"),
        ("the war lasted from 41 to 63 .", "awaiting_later_year", "to"),
        ("two days after monday comes wednesday .", "awaiting_calendar_answer", "comes"),
        ("echo dax wug blik dax wug blik dax .", "in_repeated_span", "dax wug dax"),
        ("echo dax wug blik dax .", "in_echo", "echo dax wug blik dax"),
        (
            "amy speaks spanish . bob speaks english . amy : la casa cae . bob : the dog runs .",
            "language_switch",
            ":",
        ),
        (
            "amy speaks spanish . bob speaks english . amy : la casa cae . bob : the dog runs .",
            "spanish_turn",
            ": la casa cae",
        ),
        (
            "las casas de el perro son rojas .",
            "spanish_subject_feminine",
            "casas de el perro son rojas",
        ),
        ("el perro de las casas es rojo .", "spanish_subject_plural", ""),
    ],
)
def test_label_is_on_at_the_expected_words(text, name, expected):
    assert labelled(text, name) == expected.split()


def test_recipient_is_the_name_that_did_not_come_twice(documents):
    rows, columns = np.nonzero(on(documents.labels, "awaiting_recipient")[:, :-1])
    for row, column in zip(rows, columns, strict=True):
        sentence = documents.tokens[row, column - 13 : column]
        names = [token for token in sentence if KIND[token].endswith("_name")]
        (once,) = (name for name in names if names.count(name) == 1)
        assert documents.tokens[row, column + 1] == once


def test_repeated_span_continues_as_after_the_word_before(documents):
    rows, columns = np.nonzero(on(documents.labels, "in_repeated_span")[:, :-1])
    assert len(rows) > 1000
    for row, column in zip(rows, columns, strict=True):
        tokens = documents.tokens[row]
        (earlier,) = np.flatnonzero(tokens[:column] == tokens[column])[-1:]
        assert tokens[column + 1] == tokens[earlier + 1]


def test_awaited_year_is_later_than_the_one_before(documents):
    rows, columns = np.nonzero(on(documents.labels, "awaiting_later_year")[:, :-1])
    assert (documents.tokens[rows, columns + 1] > documents.tokens[rows, columns - 1]).all()


def test_pending_subject_gets_a_verb_of_its_number(documents):
    kinds = np.array(KIND)[documents.tokens]
    for number in ("singular", "plural"):
        pending = on(documents.labels, f"subject_{number}")[:, :-1]
        main_verb = np.isin(kinds[:, 1:], ("singular_verb", "plural_verb"))
        assert set(kinds[:, 1:][pending & main_verb]) == {f"{number}_verb"}


def test_calendar_answers_are_sums_modulo_the_cycle(documents):
    found = 0
    for document in in_words(documents):
        for place in range(5, 127):
            if document[place] != "comes" or document[place - 2] not in ("before", "after"):
                continue
            size, unit, order, start = document[place - 4 : place]
            cycle = words.DAYS if unit in ("day", "days") else words.MONTHS
            shift = (words.NUMBERS.index(size) + 1) * (1 if order == "after" else -1)
            answer = cycle[(cycle.index(start) + shift) % len(cycle)]
            assert document[place + 1] == answer
            found += 1
    assert found > 200
