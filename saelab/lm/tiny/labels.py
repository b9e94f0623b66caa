"""The known features of the language: their list, and those that are on at every token of a text.

A label is a function of the tokens up to and including its own. Most labels are properties of the
token itself; `reader.Reader` tracks the others, reading a document from left to right.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Integer

from saelab.lm.tiny.reader import CONTEXT_LABELS, Reader
from saelab.lm.tiny.vocabulary import KIND, WORDS, ids
from saelab.lm.tiny.words import DAYS


class Label(NamedTuple):
    """A feature of the language whose truth is known at every token.

    Attributes:
        name: snake_case identifier.
        description: one sentence that says when it is on.
    """

    name: str
    description: str


_SPANISH = tuple(kind for kind in dict.fromkeys(KIND) if kind.startswith("es_"))
_FEMININE = ids("es_noun_fs", "es_noun_fp", "es_adjective_fs", "es_adjective_fp")
_PLURAL = ids("es_noun_mp", "es_noun_fp", "es_adjective_mp", "es_adjective_fp", "es_verb_p")


def _words(*members: str) -> tuple[int, ...]:
    return tuple(WORDS.index(word) for word in members)


_TOKEN_LABELS: dict[str, tuple[str, tuple[int, ...]]] = {
    "noun_singular": ("This token is a singular English noun.", ids("singular_noun")),
    "noun_plural": ("This token is a plural English noun.", ids("plural_noun")),
    "verb_singular": (
        "This token is an English verb in the singular.",
        ids("singular_verb", "singular_transitive"),
    ),
    "verb_plural": (
        "This token is an English verb in the plural.",
        ids("plural_verb", "plural_transitive"),
    ),
    "name_female": ("This token is a woman's name.", ids("female_name")),
    "name_male": ("This token is a man's name.", ids("male_name")),
    "noun_female": ("This token is a noun for a woman, such as queen.", ids("female_noun")),
    "noun_male": ("This token is a noun for a man, such as king.", ids("male_noun")),
    "pronoun_female": ("This token is she or her.", _words("she", "her")),
    "pronoun_male": ("This token is he or his.", _words("he", "his")),
    "place": ("This token is a place, such as garden.", ids("place")),
    "object": ("This token is a thing that can be given, such as book.", ids("object")),
    "preposition": ("This token is a preposition of place, such as near.", ids("preposition")),
    "positive_word": ("This token is a pleasant adjective.", ids("positive")),
    "negative_word": ("This token is an unpleasant adjective.", ids("negative")),
    "year": ("This token is a two-digit year.", ids("year")),
    "number_word": ("This token is a number written as a word.", ids("number")),
    "month": ("This token is the name of a month.", ids("month")),
    "weekday": ("This token is the name of a day of the week.", ids("weekday")),
    **{day: (f"This token is {day}.", _words(day)) for day in DAYS},
    "nonce_word": ("This token is a made-up word without meaning.", ids("nonce")),
    "spanish_token": ("This token is a Spanish word.", ids(*_SPANISH)),
    "spanish_feminine": (
        "This token is a feminine Spanish noun, adjective or article.",
        (*_FEMININE, *_words("la", "las", "una", "unas")),
    ),
    "spanish_plural": (
        "This token is a plural Spanish noun, adjective, article or verb.",
        (*_PLURAL, *_words("los", "las", "unos", "unas", "son")),
    ),
    "opening_bracket": ("This token opens a bracket.", ids("opening")),
    "closing_bracket": ("This token closes a bracket.", ids("closing")),
    "sentence_end": ("This token is the full stop that ends a sentence.", _words(".")),
}

LABELS: tuple[Label, ...] = (
    *(Label(name, description) for name, (description, _) in _TOKEN_LABELS.items()),
    *(Label(name, description) for name, description in CONTEXT_LABELS.items()),
)
"""Every known feature, in the order of the last axis of `Documents.labels`."""

LABEL_INDEX: dict[str, int] = {label.name: index for index, label in enumerate(LABELS)}
"""The index of each label on that axis."""


def _token_table() -> Bool[np.ndarray, "vocabulary n_token_labels"]:
    table = np.zeros((len(WORDS), len(_TOKEN_LABELS)), np.bool_)
    for column, (_, members) in enumerate(_TOKEN_LABELS.values()):
        table[list(members), column] = True
    return table


_TABLE = _token_table()


def annotate(tokens: Integer[np.ndarray, "n pos"]) -> Bool[np.ndarray, "n pos n_labels"]:
    """The labels that are on at every token of any documents, your own prompts included.

    Each row is read as one document from its first token.
    """
    masks = np.empty(tokens.shape, np.uint32)
    for row, document in enumerate(tokens.tolist()):
        masks[row] = Reader().read(document)
    bits = np.unpackbits(
        masks.astype("<u4", copy=False).view(np.uint8).reshape(*tokens.shape, 4),
        axis=-1,
        count=len(CONTEXT_LABELS),
        bitorder="little",
    )
    return np.concatenate([_TABLE[tokens], bits.view(np.bool_)], axis=-1)


HIERARCHIES: dict[str, tuple[str, ...]] = {
    "noun": (*("noun_singular", "noun_plural", "noun_female", "noun_male", "place", "object"),),
    "verb": ("verb_singular", "verb_plural"),
    "name": ("name_female", "name_male"),
    "pronoun": ("pronoun_female", "pronoun_male"),
    "sentiment_word": ("positive_word", "negative_word"),
    "weekday": (*("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"),),
    "bracket": ("opening_bracket", "closing_bracket"),
    "innermost_bracket": (
        *("innermost_round", "innermost_square", "innermost_curly", "innermost_angle"),
    ),
    "pending_subject": ("subject_singular", "subject_plural"),
    "referent": ("referent_female", "referent_male"),
    "sentiment_of_document": ("document_positive", "document_negative"),
}
"""General labels of the language as unions of special ones."""

UNIONS = {
    "noun": "This token is an English noun of any kind.",
    "verb": "This token is an English verb.",
    "name": "This token is a person's name.",
    "pronoun": "This token is a pronoun for a person.",
    "sentiment_word": "This token is an adjective that is pleasant or unpleasant.",
    "weekday": "This token is the name of a day of the week.",
    "bracket": "This token is a bracket.",
    "innermost_bracket": "A bracket is open after this token.",
    "pending_subject": "The subject of the sentence still waits for its verb.",
    "referent": "The sentence is about a person to whom no pronoun has referred yet.",
    "sentiment_of_document": "A pleasant or an unpleasant adjective has occurred in the text.",
}
"""When each general label of HIERARCHIES is on."""
