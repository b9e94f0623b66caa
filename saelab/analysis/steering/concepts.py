"""The concepts of the shipped grammar: words that express them, and prompts for the opposite."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from saelab.config import UsageError
from saelab.lm.protocol import LanguageModel

LONGEST_PROMPT = 32
OVERSAMPLE = 3
"""Prompts drawn for each prompt kept: half of them are kept for two opposites, three quarters for
four brackets."""


@dataclass(frozen=True)
class Concept:
    """A concept that a text of the grammar can express.

    Attributes:
        label: the ground-truth label that holds where the concept is present.
        against: labels of its opposite, one of which holds there; if empty, the opposite is the
            concept's absence.
        says: words, or vocabulary classes of words, that express it.
        task: the task whose prompts end before a word of the concept or of its opposite.
    """

    name: str
    label: str
    against: tuple[str, ...]
    says: tuple[str, ...]
    task: str


_SPANISH = (
    *("es_article", "es_indefinite", "es_noun_ms", "es_noun_mp", "es_noun_fs", "es_noun_fp"),
    *("es_adjective_ms", "es_adjective_mp", "es_adjective_fs", "es_adjective_fp"),
    *("es_verb_s", "es_verb_p", "es_copula", "es_adverb", "es_other"),
)
_CLOSING = {"round": ")", "square": "]", "curly": "}", "angle": ">"}


def _pair(
    names: tuple[str, str],
    labels: tuple[str, str],
    says: tuple[tuple[str, ...], tuple[str, ...]],
    task: str,
) -> list[Concept]:
    """Two concepts that are opposites."""
    return [
        Concept(name, label, (other,), words, task)
        for name, label, other, words in zip(names, labels, labels[::-1], says, strict=True)
    ]


CONCEPTS: tuple[Concept, ...] = (
    *_pair(
        ("female", "male"),
        ("referent_female", "referent_male"),
        (("she", "her"), ("he", "his")),
        "gendered_pronoun",
    ),
    *_pair(
        ("positive", "negative"),
        ("document_positive", "document_negative"),
        (("positive",), ("negative",)),
        "document_sentiment",
    ),
    *_pair(
        ("singular", "plural"),
        ("subject_singular", "subject_plural"),
        (("singular_verb",), ("plural_verb",)),
        "agreement_across_attractor",
    ),
    Concept("spanish", "spanish_turn", (), _SPANISH, "language_switch"),
    *(
        Concept(
            f"{shape} bracket",
            f"innermost_{shape}",
            tuple(f"innermost_{other}" for other in _CLOSING if other != shape),
            (closing,),
            "closing_bracket",
        )
        for shape, closing in _CLOSING.items()
    ),
)
"""Gender, sentiment, number, language and kind of bracket."""


@dataclass(frozen=True)
class ConceptPrompts:
    """Prompts after which the model should express the opposite of a concept.

    Attributes:
        tokens: `[prompt, pos]`, padded on the right.
        last: last position of each prompt.
        says: which tokens of the vocabulary express the concept.
    """

    tokens: Int[Tensor, "prompt pos"]
    last: Int[Tensor, " prompt"]
    says: Bool[Tensor, " d_vocab"]

    @property
    def mask(self) -> Bool[Tensor, "prompt pos"]:
        """The last position of each prompt."""
        return torch.arange(self.tokens.shape[1], device=self.last.device) == self.last[:, None]


def concept_prompts(
    lm: LanguageModel, n: int, *, seed: int = 0, concepts: Sequence[Concept] = CONCEPTS
) -> dict[str, ConceptPrompts]:
    """At most `n` held-out prompts per concept, by the concept's name.

    Raises:
        UsageError: the model is not the shipped one.
    """
    if lm.info.name != "tiny":
        raise UsageError(
            f"The concepts are those of the shipped grammar; {lm.info.name} does not speak it."
        )
    from saelab.lm.tiny.tasks import prompts_of_all, task

    tasks = [task(name) for name in dict.fromkeys(concept.task for concept in concepts)]
    asked = prompts_of_all(tasks, OVERSAMPLE * n, seed=seed, longest=LONGEST_PROMPT)
    found = {}
    for concept in concepts:
        prompts = asked[concept.task]
        says = saying_tokens(concept)
        opposite = (~(prompts.correct & says).any(dim=1)).nonzero()[:n, 0]
        found[concept.name] = ConceptPrompts(
            prompts.tokens[opposite].to(lm.device),
            prompts.last[opposite].to(lm.device),
            says.to(lm.device),
        )
    return found


def saying_tokens(concept: Concept) -> Bool[Tensor, " d_vocab"]:
    """Which tokens of the shipped model's vocabulary express a concept."""
    from saelab.lm.tiny.vocabulary import KIND, WORDS

    says = np.isin(WORDS, concept.says) | np.isin(KIND, concept.says)
    return torch.from_numpy(says)
