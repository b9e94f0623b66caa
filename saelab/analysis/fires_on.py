"""A latent's description from its evidence alone, without any model: "fires on: ...".

It reads some twenty peaks of one latent, so it is made when it is shown, and from any features.h5.
It says what the strongest examples have in common; it was not tested on other text, and no
language model has read them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from saelab.analysis.feature_file import FeatureFile
from saelab.console import visible

PREFIX = "fires on: "
FEW, MOST_SHOWN, MOST_RAISED = 3, 4, 3
LONGEST_TOKEN = 16
"""Characters of a token that are shown."""
NEARLY_ALL, MANY, MOST = 0.9, 0.8, 0.6
"""Shares of the examples that must have in common what is said of them."""
LIFT = 3.0
"""A neighbouring token is named if it is this many times as frequent as in the whole text."""
LEAST_DIFFERENT = 4
"""Different words from which a common beginning or ending is one of words, not of a word."""


@dataclass(frozen=True)
class _Peaks:
    """The strongest examples: token, position and neighbours (None at the text's edge) of each."""

    tokens: list[str]
    positions: list[int]
    before: list[str | None]
    after: list[str | None]


def fires_on(file: FeatureFile, latent: int) -> str:
    """One line on what a latent's strongest examples have in common, and which logits it raises.

    The first of these that holds: three tokens or fewer (80 %), one position, numbers, a common
    beginning, ending or first letter (90 %), a common token before or behind (60 %, and three times
    its share of the text); else the most frequent tokens. Empty if the latent never fired.

    Raises:
        UsageError: the file's parts do not fit each other.
    """
    with file.reading():
        peaks = _peaks(file, latent)
        if not peaks.tokens:
            return ""
        return PREFIX + _in_common(file, peaks) + _raised(file, latent)


def _peaks(file: FeatureFile, latent: int) -> _Peaks:
    fired, negative = (int(file[f"latent/{n}"][latent]) for n in ("n_fired", "n_negative"))
    kind = "negative" if 2 * negative > fired and "negative" in file.kinds else "top"
    contexts, positions = (file[f"{kind}/{n}"][latent] for n in ("context", "position"))
    found = _Peaks([], [], [], [])
    for context, at in zip(contexts.tolist(), positions.tolist(), strict=True):
        if context < 0:
            continue
        ids = file["corpus/tokens"][context, max(0, at - 1) : at + 2].tolist()
        here = min(at, 1)
        found.tokens.append(file.token(_known(ids[here])))
        found.positions.append(at)
        found.before.append(file.token(ids[0]) if at and ids[0] >= 0 else None)
        last = here + 1 == len(ids) or ids[here + 1] < 0
        found.after.append(None if last else file.token(ids[here + 1]))
    return found


def _known(token: int) -> int:
    if token < 0:
        raise IndexError("an example's peak is padding")
    return token


def _in_common(file: FeatureFile, peaks: _Peaks) -> str:
    count = Counter(token.strip() or token for token in peaks.tokens)
    n = len(peaks.tokens)
    shown = _listed(count)
    if sum(times for _, times in count.most_common(FEW)) >= MANY * n:
        return shown
    (place, times) = Counter(peaks.positions).most_common(1)[0]
    if times >= NEARLY_ALL * n:
        return f"position {place} of a text, e.g. {shown}"
    if shape := _shape(count):
        return f"{shape}: {shown}"
    for side, tokens in (("behind", peaks.before), ("before", peaks.after)):
        if (neighbour := _neighbour(file, tokens)) is not None:
            return f"what stands {side} {_quoted(neighbour)}: {shown}"
    return shown


def _shape(count: Counter[str]) -> str:
    """What nearly all of the tokens have in common as strings; empty if nothing."""
    n = count.total()
    if len(count) < LEAST_DIFFERENT:
        return ""
    if sum(times for token, times in count.items() if token.isdigit()) >= NEARLY_ALL * n:
        return "numbers"
    for length in range(max(map(len, count)) - 1, 0, -1):
        for what, part in (("beginning", slice(length)), ("ending", slice(-length, None))):
            if text := _shared(count, part, length):
                if length == 1 and what == "ending":
                    continue
                kind = "the first letter" if length == 1 else f"the {what}"
                return f"words with {kind} {_quoted(text)}"
    return ""


def _shared(count: Counter[str], part: slice, length: int) -> str:
    """The part that is the same in nearly all tokens; empty if there is none."""
    times, words = Counter[str](), Counter[str]()
    for token, n in count.items():
        if token.isalpha() and len(token) > length:
            times[token[part].lower()] += n
            words[token[part].lower()] += 1
    text, n = times.most_common(1)[0] if times else ("", 0)
    return text if n >= NEARLY_ALL * count.total() and words[text] >= LEAST_DIFFERENT else ""


def _neighbour(file: FeatureFile, tokens: Sequence[str | None]) -> str | None:
    """The token that most of the examples have there, if far fewer other tokens have it."""
    token, times = Counter(tokens).most_common(1)[0]
    if token is None or times < MOST * len(tokens):
        return None
    everywhere = file.token_counts
    share = everywhere[file.table.ids[token]] / max(1, everywhere.sum())
    return token if times / len(tokens) >= LIFT * share else None


def _raised(file: FeatureFile, latent: int) -> str:
    if "logits/top_tokens" not in file:
        return ""
    tokens = file["logits/top_tokens"][latent][:MOST_RAISED].tolist()
    return f"; raises {', '.join(_quoted(file.token(_known(token))) for token in tokens)}"


def _listed(count: Counter[str]) -> str:
    shown = ", ".join(_quoted(token) for token, _ in count.most_common(MOST_SHOWN))
    others = len(count) - MOST_SHOWN
    return shown if others <= 0 else f"{shown} and {others} other{'s' if others > 1 else ''}"


def _quoted(token: str) -> str:
    token = token.strip() or token
    cut = token if len(token) <= LONGEST_TOKEN else f"{token[: LONGEST_TOKEN - 1]}…"
    return f"“{visible(cut)}”"
