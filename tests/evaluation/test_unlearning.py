"""Unlearning on a model whose latents hold one subject, or two at once."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from evaluation.cases import sae_with
from evaluation.lookup import HOOK, LookupModel
from stand_in import answer_as

from saelab.activations.corpus import Contexts
from saelab.config import UsageError
from saelab.evaluation.tasks.clamping import best_latents, distinct_sets
from saelab.evaluation.tasks.pooled import TextReader
from saelab.evaluation.tasks.questions import HEAD, ChoiceQuestion, Questions, read_questions
from saelab.evaluation.tasks.unlearning import Subjects, measure_unlearning
from saelab.host.host import Host

HEADS = " ".join(HEAD.format(subject=each) for each in ("cells", "rivers")).split()
WORDS = [
    *("A", "B", "A.", "B.", "Answer:", "wrong", "cell", "river", "the", "odd", "right"),
    *sorted(set(HEADS)),
]
EMBEDDING = torch.zeros(len(WORDS), 3)
for _dim, _word in enumerate(("cell", "river", "the")):
    EMBEDDING[WORDS.index(_word), _dim] = 1
SETTING = {"clamp": [5.0, 20.0], "n_text_tokens": 64, "seed": 0}


def answer(tokens, x):
    """The letter of the choice `right`, as surely as the sum of x says; A if it does not know."""
    sure = x.sum(dim=(1, 2)) - 0.5
    place = torch.tensor(
        [row.index(WORDS.index("right")) for row in tokens.tolist()], dtype=torch.long
    )
    letter = tokens[torch.arange(len(tokens)), place - 1] - WORDS.index("A.")
    logits = torch.zeros(len(tokens), tokens.shape[1], len(WORDS)) - 100
    logits[:, :, WORDS.index("A")], logits[:, :, WORDS.index("B")] = 0.1, 0
    for row, which in enumerate(letter.tolist()):
        logits[row, :, which] += sure[row]
    return logits


@pytest.fixture
def lm(random_lm) -> Any:
    model = LookupModel(WORDS, EMBEDDING, answer)
    answer_as(model, random_lm)
    return model


def corpus(words: str) -> Any:
    tokens = np.tile([WORDS.index(word) for word in words.split()], (8, 2))
    return SimpleNamespace(
        facts={"source": words},
        label_names=(),
        label_descriptions={},
        label_hierarchies={},
        context_length=tokens.shape[1],
        endless=False,
        available=lambda n: min(n, len(tokens)),
        read=lambda a, b: Contexts(tokens[a:b], np.arange(a, b)),
    )


def subjects() -> Subjects:
    """Twelve questions about cells and rivers; of cells, also two that the model does not know."""
    rows = {
        word: [ChoiceQuestion(word, ("right", "wrong"), 0)] * 12
        for word in ("cell", "river", "odd")
    }
    return Subjects(
        Questions("cells", rows["cell"] + rows["odd"][:2]),
        [Questions("rivers", rows["river"])],
        (corpus("cell the cell cell"), corpus("the river the the")),
    )


def test_a_latent_of_the_subject_alone_makes_the_model_forget_it_alone(lm):
    reader = TextReader(Host.at(lm, sae_with(torch.eye(3)), HOOK))
    task = measure_unlearning(reader, subjects(), asked="", setting=SETTING)["cells"]
    assert task.known == {"cells": [12, 14], "rivers": [12, 12]}
    assert task.score.value == 1
    assert [(p.n_latents, p.forget, p.others) for p in task.points] == [(1, 0, 1)] * 2
    # Of 12 questions, none is right.
    assert task.score.low == pytest.approx(0.757, abs=0.01)


def test_a_latent_of_two_subjects_cannot(lm):
    """It fires on both subjects, so that the other is forgotten too."""
    atoms = torch.tensor([[1.0, 1, 0], [0, 0, 1]])
    reader = TextReader(Host.at(lm, sae_with(atoms), HOOK))
    data = subjects()
    data = Subjects(data.forget, data.others, (data.texts[0], corpus("the the")))
    task = measure_unlearning(reader, data, asked="", setting=SETTING)["cells"]
    assert {(p.forget, p.others) for p in task.points} == {(0, 0)}
    assert (task.best, task.score.value) == (None, 0)


def test_latents_are_ranked_by_the_subjects_text_among_those_that_the_other_hardly_has():
    forget, ordinary = torch.tensor([0.5, 0.9, 0.0, 0.2]), torch.tensor([0.0, 0.1, 0.0, 0.005])
    assert best_latents(forget, ordinary, 0.01).tolist() == [0, 3]
    assert best_latents(forget, ordinary, 0.001).tolist() == [0]


def test_settings_that_clamp_the_same_latents_are_measured_once():
    forget = torch.linspace(1, 0.1, 40)
    many = [len(latents) for _, latents in distinct_sets(forget, torch.zeros(40))]
    assert many == [10, 20]
    few = torch.full((40,), 0.5)
    few[:12], few[12:15] = 0, 0.005
    found = [(share, len(latents)) for share, latents in distinct_sets(forget, few)]
    assert found == [(0.001, 10), (0.001, 12), (0.01, 15)]


def test_a_model_that_knows_nothing_says_so(lm):
    reader = TextReader(Host.at(lm, sae_with(torch.eye(3)), HOOK))
    data = subjects()
    odd = Questions("cells", [ChoiceQuestion("odd", ("right", "wrong"), 0)])
    with pytest.raises(UsageError, match="no question about cells"):
        measure_unlearning(
            reader, Subjects(odd, data.others, data.texts), asked="", setting=SETTING
        )


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"question": "q", "choices": ["a", "b"], "answer": 2}, "one of its 2 choices"),
        ({"question": "q", "choices": ["a"], "answer": 0}, "2 to 26 texts"),
        ({"question": "q", "choices": ["a", None], "answer": 0}, "2 to 26 texts"),
        ({"choices": ["a", "b"], "answer": 0}, "'question'"),
    ],
)
def test_a_bad_question_names_its_line(tmp_path, row, problem):
    path = tmp_path / "us_history.jsonl"
    good = {"question": "q", "choices": ["a", "b"], "answer": "B"}
    path.write_text(json.dumps(good))
    assert read_questions(path) == Questions("us history", [ChoiceQuestion("q", ("a", "b"), 1)])
    path.write_text(json.dumps(good) + "\n" + json.dumps(row))
    with pytest.raises(UsageError, match=f"Line 2 of .*{problem}"):
        read_questions(path)
