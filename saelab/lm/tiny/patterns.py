"""Token patterns without meaning: repeated random spans and nested brackets.

A fixed hash splits both into patterns that may occur in training and patterns that occur only in
held-out documents, so a held-out pattern cannot have been memorised.
"""

from typing import no_type_check

from saelab.lm.tiny.sentences import ALL_NAMES, ES_NOUNS, NOUNS, PERIOD, Writer
from saelab.lm.tiny.vocabulary import ID, ids

ECHO = ID["echo"]
OPENING, CLOSING, ATOMS = ids("opening"), ids("closing"), ids("atom")
MAX_DEPTH = 6
GATE_DEPTH = 3

_NONCE = ids("nonce")
_THINGS = ids("object", "place", "event")
_SPANISH = tuple(token for form in ES_NOUNS for token in form)
_ENGLISH = NOUNS[0] + NOUNS[1]
_ANY = (
    _NONCE + ALL_NAMES + _THINGS + _SPANISH + _ENGLISH + ids("year", "weekday", "month", "number")
)
POOLS: tuple[tuple[int, ...], ...] = (_NONCE, ALL_NAMES, _THINGS, _SPANISH, _ENGLISH, _ANY)

_ATTEMPTS = 300


# Called up to eight times per word: runtime argument checks would dominate a test's time.
@no_type_check
def is_held_out_pair(first: int, second: int) -> bool:
    """Whether two words are neighbours only in held-out echo spans; one pair in eight."""
    return ((first * 2654435761 ^ second * 2246822519) >> 15) & 7 == 0


def skeleton_step(state: int, bracket: int) -> int:
    """The hash of a bracket skeleton, started at 0, after one more bracket."""
    return (state * 131 + bracket + 1) & 0xFFFFFFFF


def is_held_out_skeleton(state: int) -> bool:
    """Whether a document that first reaches depth 3 this way is held out; one skeleton in four."""
    return (((state * 2654435761) & 0xFFFFFFFF) >> 20) & 3 == 0


def echo(writer: Writer, longest: int) -> None:
    """`echo blik dax wug blik dax wug .`: distinct random words, then the same words again.

    In training no neighbouring words of the block (the seam between copies included) are a held-out
    pair; in held-out documents all neighbours inside the span are.
    """
    span = _span(writer, 3 + int(writer.random() * (longest - 2)))
    copies = 2 if writer.random() < 0.6 else 3
    writer.out.append(ECHO)
    writer.out += span * copies
    writer.out.append(PERIOD)


def short_echo(writer: Writer) -> None:
    """An echo block of at most six words, short enough to stand inside a story."""
    echo(writer, 6)


def long_echo(writer: Writer) -> None:
    """An echo block of at most thirty words."""
    echo(writer, 30)


def _span(writer: Writer, length: int) -> list[int]:
    pool = POOLS[int(writer.random() * len(POOLS))]
    span = [writer.pick(pool)]
    while len(span) < length:
        following = _next_word(writer, pool, span)
        if following is None:
            break
        span.append(following)
    while span and not writer.held_out and is_held_out_pair(span[-1], span[0]):
        span.pop()
    return span if len(span) > 2 else _span(writer, length)


def _next_word(writer: Writer, pool: tuple[int, ...], span: list[int]) -> int | None:
    last, held_out = span[-1], writer.held_out
    for _ in range(_ATTEMPTS):
        word = writer.pick(pool)
        if is_held_out_pair(last, word) == held_out and word not in span:
            return word
    return None


def brackets(writer: Writer) -> None:
    """`( p [ q ] )`: one balanced expression of four bracket types, at most six deep.

    The skeleton (the brackets without the letters) up to the first bracket that reaches depth 3 is
    always of the held-out kind in held-out documents and never in training. So no prefix that
    reached depth 3 occurs in both.
    """
    out, stack, state, gated = writer.out, [int(writer.random() * 4)], 0, True
    out.append(OPENING[stack[0]])
    state = skeleton_step(state, out[-1])
    while stack:
        kind = writer.random()
        opened = None
        if kind < 0.42 and len(stack) < MAX_DEPTH:
            gate = gated and len(stack) == GATE_DEPTH - 1
            opened = _opening(writer, state) if gate else int(writer.random() * 4)
        if opened is not None:
            stack.append(opened)
            out.append(OPENING[opened])
            gated = gated and len(stack) < GATE_DEPTH
        elif 0.42 <= kind < 0.68:
            out.append(writer.pick(ATOMS))
            continue
        else:
            out.append(CLOSING[stack.pop()])
        state = skeleton_step(state, out[-1])


def _opening(writer: Writer, state: int) -> int | None:
    """A bracket type that may reach depth 3 after this skeleton, or None if there is none."""
    first = int(writer.random() * 4)
    for turn in range(4):
        kind = (first + turn) % 4
        if is_held_out_skeleton(skeleton_step(state, OPENING[kind])) == writer.held_out:
            return kind
    return None
