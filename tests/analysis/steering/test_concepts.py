"""The concepts are the grammar's, and their prompts call for the opposite."""

import numpy as np
import pytest
import torch

from saelab.analysis.steering.concepts import CONCEPTS, concept_prompts, saying_tokens
from saelab.config import UsageError
from saelab.lm.tiny.labels import LABEL_INDEX, annotate
from saelab.lm.tiny.vocabulary import KIND, WORDS


@pytest.fixture(scope="module")
def prompts(tiny_lm):
    return concept_prompts(tiny_lm, 6, seed=3)


def test_every_concept_s_label_exists_and_opposites_say_different_things():
    for concept in CONCEPTS:
        assert concept.label in LABEL_INDEX
        assert all(label in LABEL_INDEX for label in concept.against)
        says = saying_tokens(concept)
        assert says.any()
        for other in CONCEPTS:
            if other.label in concept.against:
                assert not bool((says & saying_tokens(other)).any())


def test_words_and_classes_say_a_concept():
    said = {c.name: np.array(WORDS)[saying_tokens(c).numpy()].tolist() for c in CONCEPTS}
    assert said["female"] == ["she", "her"]
    assert said["round bracket"] == [")"]
    assert "splendid" in said["positive"]
    assert all(KIND[WORDS.index(word)].startswith("es_") for word in said["spanish"])
    assert len(said["spanish"]) == sum(kind.startswith("es_") for kind in KIND)


def test_the_model_would_say_the_opposite(prompts, tiny_lm):
    for name, asked in prompts.items():
        assert len(asked.tokens) == 6, name
        assert asked.mask.sum() == 6
        plain = tiny_lm.logits(asked.tokens)[asked.mask].softmax(-1)
        assert float(plain[:, asked.says].sum(dim=1).max()) < 0.1, name


def test_the_concept_is_absent_at_the_prompts_ends(prompts):
    for concept in CONCEPTS:
        asked = prompts[concept.name]
        labels = torch.from_numpy(annotate(asked.tokens.numpy()))[asked.mask]
        assert not bool(labels[:, LABEL_INDEX[concept.label]].any()), concept.name


def test_another_model_has_no_concepts(random_lm):
    with pytest.raises(UsageError, match="does not speak it"):
        concept_prompts(random_lm, 3)
