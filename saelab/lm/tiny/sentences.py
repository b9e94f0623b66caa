"""The sentences of the grammar: each function appends one whole sentence to a `Writer`."""

from collections.abc import Callable, Sequence
from typing import final, no_type_check

from saelab.lm.tiny.vocabulary import ID, ids

PERIOD, COMMA, COLON = ID["."], ID[","], ID[":"]
THE, A, AND, TO, THAT, WAS = (ID[word] for word in ("the", "a", "and", "to", "that", "was"))
FEMALE, MALE = 0, 1
SINGULAR, PLURAL = 0, 1

NAMES = (ids("female_name"), ids("male_name"))
ALL_NAMES = NAMES[FEMALE] + NAMES[MALE]
GENDERED_NOUNS = (ids("female_noun"), ids("male_noun"))
NOUNS = (ids("singular_noun"), ids("plural_noun"))
VERBS = (ids("singular_verb"), ids("plural_verb"))
TRANSITIVES = (ids("singular_transitive"), ids("plural_transitive"))
ADJECTIVES = (ids("positive"), ids("negative"))
SUBJECT_PRONOUNS = (ID["she"], ID["he"])
POSSESSIVES = (ID["her"], ID["his"])
ADVERBS, PREPOSITIONS = ids("adverb"), ids("preposition")
PLACES, OBJECTS, EVENTS = ids("place"), ids("object"), ids("event")
LEADS, WENT, GAVE = ids("lead"), ids("went"), ids("gave")
MET, LEFT, TOOK = ids("met"), ids("left"), ids("took")
YEARS, WEEKDAYS, MONTHS, NUMBERS = ids("year"), ids("weekday"), ids("month"), ids("number")
ES_ARTICLES, ES_INDEFINITE = ids("es_article"), ids("es_indefinite")
ES_NOUNS = tuple(ids(f"es_noun_{form}") for form in ("ms", "mp", "fs", "fp"))
ES_ADJECTIVES = tuple(ids(f"es_adjective_{form}") for form in ("ms", "mp", "fs", "fp"))
ES_VERBS = (ids("es_verb_s"), ids("es_verb_p"))
ES_COPULAS, ES_ADVERBS = ids("es_copula"), ids("es_adverb")
DE, Y = ID["de"], ID["y"]


# Called for every word: runtime argument checks would dominate a test's time.
@no_type_check
@final
class Writer:
    """A document being written: its tokens so far, its random numbers and its fixed choices."""

    __slots__ = ("held_out", "out", "random", "sentiment")

    def __init__(self, random: Callable[[], float], *, held_out: bool) -> None:
        """Start an empty document; `random` draws uniformly from [0, 1)."""
        self.random = random
        self.held_out = held_out
        self.out: list[int] = []
        self.sentiment = int(random() * 2)

    def pick(self, pool: Sequence[int]) -> int:
        """One member of `pool`, uniformly."""
        return pool[int(self.random() * len(pool))]

    def coin(self) -> int:
        """0 or 1, evenly."""
        return int(self.random() * 2)

    def adjective(self) -> int:
        """An adjective of the document's sentiment."""
        return self.pick(ADJECTIVES[self.sentiment])

    def two_names(self) -> tuple[int, int]:
        """Two different names."""
        first = second = self.pick(ALL_NAMES)
        while second == first:
            second = self.pick(ALL_NAMES)
        return first, second


Sentence = Callable[[Writer], None]


def agreement(writer: Writer) -> None:
    """`the dogs near the cat run quickly .`: the verb agrees with the first noun."""
    number = writer.coin()
    noun_phrase(writer, number)
    _modifier(writer, number)
    writer.out.append(writer.pick(VERBS[number]))
    if writer.random() < 0.3:
        writer.out.append(writer.pick(ADVERBS))
    writer.out.append(PERIOD)


def noun_phrase(writer: Writer, number: int) -> None:
    """`the [happy] dogs`."""
    writer.out.append(THE)
    if writer.random() < 0.2:
        writer.out.append(writer.adjective())
    writer.out.append(writer.pick(NOUNS[number]))


def _modifier(writer: Writer, number: int) -> None:
    kind = writer.random()
    if kind < 0.3:
        return
    if kind < 0.75:
        for _ in range(1 if kind < 0.6 else 2):
            writer.out.append(writer.pick(PREPOSITIONS))
            noun_phrase(writer, writer.coin())
        return
    other = writer.coin()
    writer.out.append(THAT)
    if kind < 0.87:
        noun_phrase(writer, other)
        writer.out.append(writer.pick(TRANSITIVES[other]))
    else:
        writer.out.append(writer.pick(TRANSITIVES[number]))
        noun_phrase(writer, other)


def indirect_object(writer: Writer) -> None:
    """`when mary and john went to the store , john gave a drink to mary .` (ABBA and BABA)."""
    pair = writer.two_names()
    giver = writer.coin()
    writer.out += (
        *(writer.pick(LEADS), pair[0], AND, pair[1], writer.pick(WENT), TO, THE),
        *(writer.pick(PLACES), COMMA, pair[giver], writer.pick(GAVE), A, writer.pick(OBJECTS)),
        *(TO, pair[1 - giver], PERIOD),
    )


def pronoun(writer: Writer) -> None:
    """`alice thanked bob because she was happy .`: a pronoun means the sentence's subject."""
    gender = writer.coin()
    _person(writer, gender)
    kind = writer.random()
    if kind < 0.35:
        writer.out += (writer.pick(TOOK), POSSESSIVES[gender], writer.pick(OBJECTS))
        if kind < 0.15:
            writer.out += (ID["in"], THE, writer.pick(PLACES))
    else:
        if kind < 0.6:
            writer.out.append(writer.pick(LEFT))
        else:
            writer.out.append(writer.pick(MET))
            _person(writer, writer.coin())
        writer.out += (ID["because"], SUBJECT_PRONOUNS[gender], WAS, writer.adjective())
    writer.out.append(PERIOD)


def _person(writer: Writer, gender: int) -> None:
    if writer.random() < 0.7:
        writer.out.append(writer.pick(NAMES[gender]))
    else:
        writer.out += (THE, writer.pick(GENDERED_NOUNS[gender]))


def feeling(writer: Writer) -> None:
    """`the garden was lovely and bright .`: adjectives of the document's single sentiment."""
    kind = writer.random()
    if kind < 0.5:
        writer.out += (THE, writer.pick(PLACES), WAS, writer.adjective(), AND, writer.adjective())
    elif kind < 0.75:
        writer.out += (ID["it"], WAS, writer.adjective())
    else:
        writer.out += (ID["everyone"], ID["felt"], writer.adjective())
    writer.out.append(PERIOD)


def years(writer: Writer) -> None:
    """`the war lasted from 41 to 63 .`: the second year is later than the first."""
    start = 1 + int(writer.random() * 97)
    end = start + 1 + int(writer.random() * (99 - start))
    writer.out += (THE, writer.pick(EVENTS), ID["lasted"])
    writer.out += (ID["from"], YEARS[start], TO, YEARS[end], PERIOD)


def weekday_arithmetic(writer: Writer) -> None:
    """`three days after monday comes thursday .`, or `today is monday and next comes tuesday .`."""
    _calendar(writer, WEEKDAYS, (ID["today"],), (ID["day"], ID["days"]))


def month_arithmetic(writer: Writer) -> None:
    """`four months before may comes january .`."""
    _calendar(writer, MONTHS, (ID["this"], ID["month"]), (ID["month"], ID["months"]))


def _calendar(
    writer: Writer, cycle: tuple[int, ...], now: tuple[int, ...], units: tuple[int, int]
) -> None:
    start = int(writer.random() * len(cycle))
    if writer.random() < 0.2:
        writer.out += (*now, ID["is"], cycle[start], AND, ID["next"])
        shift = 1
    else:
        size = 1 + int(writer.random() * (len(cycle) - 1))
        back = writer.coin()
        writer.out += (NUMBERS[size - 1], units[size > 1], ID["before" if back else "after"])
        writer.out.append(cycle[start])
        shift = -size if back else size
    writer.out += (ID["comes"], cycle[(start + shift) % len(cycle)], PERIOD)


def spanish(writer: Writer) -> None:
    """`las casas de el perro son rojas .`: article, adjective and verb agree with the noun."""
    form = int(writer.random() * 4)
    _spanish_phrase(writer, form)
    if writer.random() < 0.35:
        writer.out.append(DE)
        _spanish_phrase(writer, int(writer.random() * 4))
    if writer.random() < 0.5:
        writer.out += (ES_COPULAS[form % 2], writer.pick(ES_ADJECTIVES[form]))
        if writer.random() < 0.3:
            writer.out += (Y, writer.pick(ES_ADJECTIVES[form]))
    else:
        writer.out.append(writer.pick(ES_VERBS[form % 2]))
        if writer.random() < 0.4:
            writer.out.append(writer.pick(ES_ADVERBS))
    writer.out.append(PERIOD)


def _spanish_phrase(writer: Writer, form: int) -> None:
    articles = ES_ARTICLES if writer.random() < 0.75 else ES_INDEFINITE
    writer.out += (articles[form], writer.pick(ES_NOUNS[form]))
    if writer.random() < 0.25:
        writer.out.append(writer.pick(ES_ADJECTIVES[form]))
