"""Token ids: every word of the grammar numbered once, and the id ranges of its classes."""

from saelab.lm.tiny import spanish, words

BOS = "<bos>"
UNKNOWN = "<unk>"

_CLASSES: dict[str, tuple[str, ...]] = {
    "special": (BOS, UNKNOWN),
    "function": words.FUNCTION_WORDS,
    "female_name": words.FEMALE_NAMES,
    "male_name": words.MALE_NAMES,
    "female_noun": words.FEMALE_NOUNS,
    "male_noun": words.MALE_NOUNS,
    "singular_noun": words.SINGULAR_NOUNS,
    "plural_noun": words.PLURAL_NOUNS,
    "singular_verb": words.SINGULAR_VERBS,
    "plural_verb": words.PLURAL_VERBS,
    "singular_transitive": words.SINGULAR_TRANSITIVES,
    "plural_transitive": words.PLURAL_TRANSITIVES,
    "adverb": words.ADVERBS,
    "positive": words.POSITIVE,
    "negative": words.NEGATIVE,
    "preposition": words.PREPOSITIONS,
    "place": words.PLACES,
    "object": words.OBJECTS,
    "event": words.EVENTS,
    "lead": words.LEADS,
    "went": words.WENT,
    "gave": words.GAVE,
    "met": words.MET,
    "left": words.LEFT,
    "took": words.TOOK,
    "year": words.YEARS,
    "weekday": words.DAYS,
    "month": words.MONTHS,
    "number": words.NUMBERS,
    "nonce": words.NONCE,
    "atom": words.ATOMS,
    "opening": words.OPENING,
    "closing": words.CLOSING,
    "es_article": spanish.ARTICLES,
    "es_indefinite": spanish.INDEFINITE,
    "es_noun_ms": spanish.MASCULINE_SINGULAR,
    "es_noun_mp": spanish.MASCULINE_PLURAL,
    "es_noun_fs": spanish.FEMININE_SINGULAR,
    "es_noun_fp": spanish.FEMININE_PLURAL,
    "es_adjective_ms": spanish.ADJECTIVES[0],
    "es_adjective_mp": spanish.ADJECTIVES[1],
    "es_adjective_fs": spanish.ADJECTIVES[2],
    "es_adjective_fp": spanish.ADJECTIVES[3],
    "es_verb_s": spanish.SINGULAR_VERBS,
    "es_verb_p": spanish.PLURAL_VERBS,
    "es_copula": spanish.COPULAS,
    "es_adverb": spanish.ADVERBS,
    "es_other": spanish.OTHER,
}

WORDS: tuple[str, ...] = tuple(word for members in _CLASSES.values() for word in members)
"""The word of every token id; `<bos>` is 0."""

ID: dict[str, int] = {word: number for number, word in enumerate(WORDS)}
"""The token id of every word."""

assert len(ID) == len(WORDS), [w for w in ID if WORDS.count(w) > 1]

KIND: tuple[str, ...] = tuple(name for name, members in _CLASSES.items() for _ in members)
"""The class of every token id."""


def ids(*classes: str) -> tuple[int, ...]:
    """Token ids of all members of the named classes, in order."""
    return tuple(ID[word] for name in classes for word in _CLASSES[name])
