from functools import lru_cache

import numpy as np
import pytest
import torch

from saelab.config import UsageError
from saelab.lm.tiny.tasks import TASKS, accuracy, prompts, prompts_of_all, successes, task
from saelab.lm.tiny.vocabulary import ID, KIND, WORDS

NAMES = [of.name for of in TASKS]


@lru_cache
def all_asked():
    return prompts_of_all(n=20)


def asked_of(name):
    return all_asked()[name]


def last_words(asked, row, n):
    end = int(asked.last[row]) + 1
    return [WORDS[token] for token in asked.tokens[row, max(0, end - n) : end]]


def words(members):
    return {WORDS[token] for token in torch.nonzero(members)[:, 0]}


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_knows_the_answers_scores_one_and_its_opposite_zero(name):
    of, asked = task(name), asked_of(name)
    assert successes(asked.correct.float() * 50, asked, of.rule).all()
    assert not successes(asked.correct.float() * -50, asked, of.rule).any()


@pytest.mark.parametrize("name", NAMES)
def test_correct_tokens_are_some_but_not_all_candidates(name):
    asked = asked_of(name)
    assert (asked.correct & asked.candidates).any(-1).all()
    assert (~asked.correct & asked.candidates).any(-1).all()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_after_the_cut_is_shown(name):
    asked = asked_of(name)
    after = torch.arange(128) > asked.last[:, None]
    assert (asked.tokens[after] == 0).all()


def test_prompts_of_one_task_are_those_of_all_tasks_together():
    alone = prompts(task("greater_than"), 20)
    assert torch.equal(alone.tokens, asked_of("greater_than").tokens)


def test_recipient_prompt_ends_before_the_other_name():
    asked = asked_of("indirect_object")
    for row in range(20):
        sentence = last_words(asked, row, 14)
        (answer,) = words(asked.correct[row])
        assert sentence[-1] == "to"
        assert {sentence[1], sentence[3]} == {answer, sentence[-5]}
        assert answer != sentence[-5]


def test_attractor_prompts_hold_a_noun_of_the_wrong_number():
    asked = asked_of("agreement_across_attractor")
    for row in range(20):
        right = {KIND[ID[word]] for word in words(asked.correct[row])}
        number = right.pop().removesuffix("_verb")
        other = {"singular": "plural_noun", "plural": "singular_noun"}[number]
        assert other in {KIND[ID[word]] for word in last_words(asked, row, 10)}


def test_later_years_are_correct():
    asked = asked_of("greater_than")
    for row in range(20):
        _, start, _ = last_words(asked, row, 3)
        expected = {f"{year:02d}" for year in range(int(start) + 1, 100)}
        assert words(asked.correct[row] & asked.candidates[row]) == expected


def test_closing_brackets_are_judged_among_the_four():
    asked = asked_of("closing_bracket")
    for row in range(20):
        stack = []
        for word in last_words(asked, row, 128):
            if word in "([{<":
                stack.append({"(": ")", "[": "]", "{": "}", "<": ">"}[word])
            elif word in ")]}>":
                stack.pop()
        assert len(stack) >= 3
        assert words(asked.correct[row]) == {stack[-1]}
        assert words(asked.candidates[row]) == set(")]}>")


def test_accuracy_counts_right_prompts():
    asked = prompts(task("greater_than"), 60)
    starts = asked.tokens[torch.arange(60), asked.last - 1] - ID["00"]

    def always_fifty(tokens):
        logits = torch.zeros(*tokens.shape, len(WORDS))
        logits[..., ID["50"]] = 30.0
        return logits

    expected = float(np.mean(starts.numpy() < 50))
    assert accuracy(task("greater_than"), always_fifty, 60) == pytest.approx(expected)


def test_unknown_task_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="indirect_object"):
        task("chess")
