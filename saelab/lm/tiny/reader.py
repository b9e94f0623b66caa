"""Reading a document from left to right: the features that depend on earlier tokens.

The reader never looks ahead, so its labels are causal by construction. It accepts any sequence of
tokens, grammatical or not.
"""

from collections.abc import Callable
from typing import Final, final

from saelab.lm.tiny.vocabulary import BOS, ID, KIND, WORDS

CONTEXT_LABELS: dict[str, str] = {
    "subject_singular": "A singular subject still waits for its verb.",
    "subject_plural": "A plural subject still waits for its verb.",
    "attractor": "A noun of the other number stands between the subject and its coming verb.",
    "in_relative_clause": "This token belongs to a relative clause (that the dogs see).",
    "referent_female": "The sentence is about a woman and no pronoun has referred to her yet.",
    "referent_male": "The sentence is about a man and no pronoun has referred to him yet.",
    "duplicate_name": "This name already occurred in the same sentence.",
    "awaiting_recipient": "The next token is the indirect object: the one of two who did not give.",
    "year_range_open": "A first year was given and the second, later year has not come yet.",
    "awaiting_later_year": "The next token is a year later than the one before (from 41 to ..).",
    "awaiting_calendar_answer": "The next token is the day or month that the sentence computes.",
    "document_positive": "A pleasant adjective has occurred, so the document is pleasant.",
    "document_negative": "An unpleasant adjective has occurred, so the document is unpleasant.",
    "in_echo": "This token is inside a block of repeated random words.",
    "in_repeated_span": "A random span is being repeated and determines the next token.",
    "bracket_depth_1_or_more": "At least one bracket is open after this token.",
    "bracket_depth_3_or_more": "At least three brackets are open after this token.",
    "innermost_round": "The innermost open bracket after this token is (.",
    "innermost_square": "The innermost open bracket after this token is [.",
    "innermost_curly": "The innermost open bracket after this token is {.",
    "innermost_angle": "The innermost open bracket after this token is <.",
    "spanish_turn": "The speaker of this turn is known to speak Spanish.",
    "language_switch": "A turn begins in another language than the turn before it.",
    "spanish_subject_feminine": "The subject of this Spanish sentence is feminine.",
    "spanish_subject_plural": "The subject of this Spanish sentence is plural.",
}
"""Labels that depend on earlier tokens, each with a sentence; bits have this order."""

_BIT: Final = {name: 1 << index for index, name in enumerate(CONTEXT_LABELS)}
_SUBJECT = (_BIT["subject_singular"], _BIT["subject_plural"])
_REFERENT = {"female": _BIT["referent_female"], "male": _BIT["referent_male"]}
_INNERMOST = tuple(_BIT[f"innermost_{shape}"] for shape in ("round", "square", "curly", "angle"))
_SENTIMENT = _BIT["document_positive"] | _BIT["document_negative"]
_BRACKETS = _BIT["bracket_depth_1_or_more"] | _BIT["bracket_depth_3_or_more"] | sum(_INNERMOST)
_OUTSIDE_SENTENCE = _SENTIMENT | _BRACKETS
_PENDING_SUBJECT = sum(_SUBJECT) | _BIT["attractor"]
_BOUNDARIES = (ID["."], ID[BOS])
_NO_CLAUSE, _AFTER_THAT, _WANTS_VERB, _WANTS_NOUN = range(4)


@final
class Reader:
    """The state after reading part of a document.

    `held` are labels that stay on until something ends them, `flash` those of the current token
    only.
    """

    __slots__ = (
        *("clause", "echo", "flash", "held", "language", "names", "place", "previous_token"),
        *("speakers", "stack", "subject", "turn"),
    )

    def __init__(self) -> None:
        """Start before the first token."""
        self.held = self.flash = 0
        self.stack: list[int] = []
        self.speakers: dict[int, bool] = {}
        self.turn: bool | None = None
        self.end_sentence()

    def end_sentence(self) -> None:
        """Forget the state of the sentence; sentiment, brackets and speakers stay."""
        self.held &= _OUTSIDE_SENTENCE
        self.subject: int | None = None
        self.clause = _NO_CLAUSE
        self.names: list[int] = []
        self.echo: list[int] | None = None
        self.place = 0
        self.previous_token = -1

    def read(self, tokens: list[int]) -> list[int]:
        """The labels of each token, one bit each, in the order of `CONTEXT_LABELS`."""
        masks = []
        for token in tokens:
            self.flash = 0
            if token in _BOUNDARIES:
                self.end_sentence()
            elif self.echo is not None:
                self.read_echo(token)
            else:
                handler = _HANDLERS[token]
                if handler is not None:
                    handler(self, token)
                self.place += 1
                self.previous_token = token
            masks.append(self.held | self.flash)
        return masks

    def read_echo(self, token: int) -> None:
        """Read a word of an echo block: new, or determined by the first copy."""
        span = self.echo
        assert span is not None
        if self.place == 0 and token not in span:
            span.append(token)
            return
        # The first repeated word fixes the span's length. The span's last word determines nothing,
        # since another copy or the end may follow.
        self.place = (self.place % len(span)) + 1
        if self.place < len(span):
            self.flash = _BIT["in_repeated_span"]


def _start_echo(reader: Reader, _: int) -> None:
    reader.end_sentence()
    reader.echo = []
    reader.place = -1
    reader.held |= _BIT["in_echo"]


def _noun(reader: Reader, number: int) -> None:
    if reader.subject is None:
        reader.subject = number
        reader.held |= _SUBJECT[number]
        return
    if number != reader.subject and reader.held & sum(_SUBJECT):
        reader.held |= _BIT["attractor"]
    if reader.clause == _AFTER_THAT:
        reader.clause = _WANTS_VERB
    elif reader.clause == _WANTS_NOUN:
        _end_clause(reader)


def _end_clause(reader: Reader) -> None:
    reader.clause = _NO_CLAUSE
    reader.held &= ~_BIT["in_relative_clause"]
    reader.flash |= _BIT["in_relative_clause"]


def _main_verb(reader: Reader, _: int) -> None:
    reader.held &= ~_PENDING_SUBJECT


def _transitive(reader: Reader, _: int) -> None:
    if reader.clause == _AFTER_THAT:
        reader.clause = _WANTS_NOUN
    elif reader.clause == _WANTS_VERB:
        _end_clause(reader)


def _that(reader: Reader, _: int) -> None:
    reader.clause = _AFTER_THAT
    reader.held |= _BIT["in_relative_clause"]


def _person(reader: Reader, gender: str) -> None:
    starts_sentence = reader.place == int(reader.previous_token == ID["the"])
    if starts_sentence and not reader.speakers:
        reader.held |= _REFERENT[gender]


def _name(reader: Reader, name: int) -> None:
    _person(reader, KIND[name].removesuffix("_name"))
    if name in reader.names:
        reader.flash |= _BIT["duplicate_name"]
    reader.names.append(name)


def _pronoun(reader: Reader, _: int) -> None:
    reader.held &= ~sum(_REFERENT.values())


def _to(reader: Reader, _: int) -> None:
    if len(reader.names) == 3 and len(set(reader.names)) == 2:
        reader.flash |= _BIT["awaiting_recipient"]
    if reader.held & _BIT["year_range_open"]:
        reader.flash |= _BIT["awaiting_later_year"]


def _year(reader: Reader, _: int) -> None:
    reader.held &= ~_BIT["year_range_open"]
    if reader.previous_token == ID["from"]:
        reader.held |= _BIT["year_range_open"]


def _comes(reader: Reader, _: int) -> None:
    reader.flash |= _BIT["awaiting_calendar_answer"]


def _sentiment(reader: Reader, token: int) -> None:
    reader.held |= _BIT[f"document_{KIND[token]}"]


def _language(reader: Reader, token: int) -> None:
    if reader.previous_token == ID["speaks"] and reader.names:
        reader.speakers[reader.names[-1]] = token == ID["spanish"]
        reader.held &= ~sum(_REFERENT.values())


def _colon(reader: Reader, _: int) -> None:
    if not reader.names or reader.names[-1] not in reader.speakers:
        return
    spanish = reader.speakers[reader.names[-1]]
    if spanish:
        reader.held |= _BIT["spanish_turn"]
    if reader.turn is not None and reader.turn != spanish:
        reader.flash |= _BIT["language_switch"]
    reader.turn = spanish


def _spanish_noun(reader: Reader, token: int) -> None:
    if reader.subject is not None:
        return
    gender, number = KIND[token][-2:]
    reader.subject = int(number == "p")
    if gender == "f":
        reader.held |= _BIT["spanish_subject_feminine"]
    if number == "p":
        reader.held |= _BIT["spanish_subject_plural"]


def _open(reader: Reader, token: int) -> None:
    reader.stack.append(token - ID["("])
    _show_stack(reader)


def _close(reader: Reader, _: int) -> None:
    if reader.stack:
        reader.stack.pop()
    _show_stack(reader)


def _show_stack(reader: Reader) -> None:
    reader.held &= ~_BRACKETS
    if reader.stack:
        reader.held |= _BIT["bracket_depth_1_or_more"] | _INNERMOST[reader.stack[-1]]
    if len(reader.stack) >= 3:
        reader.held |= _BIT["bracket_depth_3_or_more"]


_Handler = Callable[[Reader, int], None]
_BY_KIND: dict[str, _Handler] = {
    "singular_noun": lambda reader, _: _noun(reader, 0),
    "plural_noun": lambda reader, _: _noun(reader, 1),
    "singular_verb": _main_verb,
    "plural_verb": _main_verb,
    "singular_transitive": _transitive,
    "plural_transitive": _transitive,
    "female_name": _name,
    "male_name": _name,
    "female_noun": lambda reader, _: _person(reader, "female"),
    "male_noun": lambda reader, _: _person(reader, "male"),
    "positive": _sentiment,
    "negative": _sentiment,
    "year": _year,
    "opening": _open,
    "closing": _close,
    **dict.fromkeys(("es_noun_ms", "es_noun_mp", "es_noun_fs", "es_noun_fp"), _spanish_noun),
}
_BY_WORD: dict[str, _Handler] = {
    "that": _that,
    "to": _to,
    "comes": _comes,
    ":": _colon,
    "echo": _start_echo,
    **dict.fromkeys(("she", "he", "her", "his"), _pronoun),
    **dict.fromkeys(("spanish", "english"), _language),
}
_HANDLERS: tuple[_Handler | None, ...] = tuple(
    _BY_WORD.get(word, _BY_KIND.get(kind)) for word, kind in zip(WORDS, KIND, strict=True)
)
