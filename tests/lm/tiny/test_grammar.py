from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.config import UsageError
from saelab.lm.tiny.grammar import LABELS, generate, generate_tokens
from saelab.lm.tiny.patterns import is_held_out_pair, is_held_out_skeleton, skeleton_step
from saelab.lm.tiny.vocabulary import ID, KIND, WORDS

OPENERS = {ID[word]: ID[closer] for word, closer in zip("([{<", ")]}>", strict=True)}
CLOSERS = set(OPENERS.values())


@pytest.fixture(scope="module")
def train():
    return generate_tokens(0, 0, 1000)


@pytest.fixture(scope="module")
def held_out():
    return generate_tokens(0, 0, 500, split="held-out")


def echo_blocks(document):
    """The words of each finished echo block of a document."""
    blocks: list[list[int]] = []
    block: list[int] | None = None
    for token in document:
        if token == ID["echo"]:
            block = []
        elif token == ID["."]:
            blocks += [block] if block else []
            block = None
        elif block is not None:
            block.append(int(token))
    return blocks


def gate_skeletons(document):
    """The brackets of each top-level expression, up to its first bracket three deep."""
    found, skeleton, depth, passed = [], [], 0, False
    for token in map(int, document):
        if token not in OPENERS and token not in CLOSERS:
            continue
        depth += 1 if token in OPENERS else -1
        skeleton.append(token)
        if depth == 3 and not passed:
            found.append(tuple(skeleton))
            passed = True
        if depth == 0:
            skeleton, passed = [], False
    return found


def hashed(skeleton):
    state = 0
    for bracket in skeleton:
        state = skeleton_step(state, bracket)
    return state


@settings(max_examples=20)
@given(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 5), st.integers(0, 5))
def test_any_slice_equals_the_same_rows_of_a_longer_one(seed, start, offset, length):
    whole = generate_tokens(seed, start, start + 10)
    part = generate_tokens(seed, start + offset, start + offset + length)
    np.testing.assert_array_equal(part, whole[offset : offset + length])


def test_a_shorter_context_gives_prefixes_of_the_same_documents():
    np.testing.assert_array_equal(
        generate_tokens(3, 0, 20, n_ctx=40), generate_tokens(3, 0, 20)[:, :40]
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [((0, "train"), (1, "train")), ((0, "train"), (0, "held-out"))],
    ids=["seeds", "splits"],
)
def test_documents_differ_between(first, second):
    one = generate_tokens(first[0], 0, 50, split=first[1])
    other = generate_tokens(second[0], 0, 50, split=second[1])
    assert not (one == other).all(axis=1).any()


def test_document_is_one_full_context_that_starts_with_bos():
    documents = generate(0, 0, 30)
    assert documents.tokens.shape == (30, 128)
    assert documents.tokens.dtype == np.int32
    assert documents.labels.shape == (30, 128, len(LABELS))
    assert (documents.tokens[:, 0] == 0).all()
    assert (documents.tokens[:, 1:] != 0).all()


def test_every_word_but_the_special_ones_is_used(train):
    used = np.unique(train)
    assert {WORDS[i] for i in set(range(len(WORDS))) - set(used.tolist())} == {"<unk>"}


def test_words_are_about_six_hundred_to_a_thousand_and_all_different():
    assert 600 <= len(WORDS) <= 1000
    assert len(set(WORDS)) == len(WORDS) == len(KIND)


def test_training_echoes_never_hold_a_held_out_pair(train):
    pairs = [
        pair for document in train for block in echo_blocks(document) for pair in pairwise(block)
    ]
    assert len(pairs) > 1000
    assert not any(is_held_out_pair(*pair) for pair in pairs)


def test_held_out_spans_hold_only_held_out_pairs(held_out):
    spans = [list(dict.fromkeys(block)) for document in held_out for block in echo_blocks(document)]
    assert len(spans) > 100
    assert all(is_held_out_pair(*pair) for s in spans for pair in pairwise(s))


def test_echo_block_is_one_span_of_distinct_words_two_or_three_times(train):
    for document in train:
        for block in echo_blocks(document):
            span = list(dict.fromkeys(block))
            assert block in (span * 2, span * 3)


@pytest.mark.parametrize(("split", "expected"), [("train", False), ("held_out", True)])
def test_the_way_to_depth_three_tells_the_splits_apart(split, expected, request):
    documents = request.getfixturevalue(split)
    skeletons = [s for document in documents for s in gate_skeletons(document)]
    assert len(skeletons) > 50
    assert {is_held_out_skeleton(hashed(s)) for s in skeletons} == {expected}


def test_brackets_close_in_the_order_they_were_opened_and_stay_within_six(train):
    deepest = 0
    for document in train:
        stack = []
        for token in map(int, document):
            if token in OPENERS:
                stack.append(OPENERS[token])
            elif token in CLOSERS:
                assert stack.pop() == token
            deepest = max(deepest, len(stack))
    assert deepest == 6


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"seed": -1, "start": 0, "stop": 1}, "seed=-1"),
        ({"seed": 0, "start": 2, "stop": 1}, "2 to 1"),
        ({"seed": 0, "start": -1, "stop": 1}, "-1 to 1"),
        ({"seed": 0, "start": 0, "stop": 1, "n_ctx": 0}, "n_ctx=0"),
    ],
)
def test_impossible_range_is_refused(arguments, problem):
    with pytest.raises(UsageError, match=problem):
        generate(**arguments)
