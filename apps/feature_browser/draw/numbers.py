"""Formatted numbers: grouped by thin spaces, with real minus signs and sensible digits."""

import math

THIN = "\u00a0"
"""A space as thin as a thin space in text fonts, at which no line breaks."""
MINUS = "\u2212"
UNKNOWN = "\u2013"


class Number(str):
    """A number as it is shown, which still knows its value: tables are saved with that."""

    __slots__ = ("value",)
    value: float

    @classmethod
    def of(cls, value: float, shown: str) -> "Number":
        """`value`, shown so."""
        number = cls(shown)
        number.value = value
        return number

    @property
    def exact(self) -> str:
        """The value for a program: nine digits tell a float32 from all others."""
        return f"{self.value:.9g}" if isinstance(self.value, float) else str(self.value)


def count(number: int) -> Number:
    """The number with thousands separated: 9 271."""
    return Number.of(number, f"{number:,}".replace(",", THIN).replace("-", MINUS))


def short_count(number: int) -> Number:
    """Exact up to 9 999, then 508 k, 2.1 M."""
    for size, letter in ((1_000_000_000, "G"), (1_000_000, "M"), (10_000, "k")):
        if number >= size:
            scaled = number / (1000 if letter == "k" else size)
            return Number.of(number, f"{scaled:.{1 if scaled < 10 else 0}f}{THIN}{letter}")
    return count(number)


def percent(share: float) -> Number:
    """1.82 %, with three significant digits; very small shares read < 0.001 %."""
    value = 100 * share
    if 0 < value < 0.001:
        return Number.of(share, f"<{THIN}0.001{THIN}%")
    digits = 0 if value == 0 else min(3, max(0, 2 - math.floor(math.log10(abs(value)))))
    return Number.of(share, f"{value:.{digits}f}{THIN}%".replace("-", MINUS))


def share_of_whole(share: float) -> Number:
    """99.97 %: two decimals, never rounded up to 100."""
    value = 100 * share
    if 99.99 < value < 100:
        return Number.of(share, f">{THIN}99.99{THIN}%")
    return Number.of(share, f"{value:.2f}{THIN}%".replace("-", MINUS))


def real(value: float | None, digits: int = 2) -> str:
    """4.96; a dash if it was not measured."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    shown = f"{value:.{digits}f}"
    text = shown.replace("-", MINUS) if float(shown) else shown.lstrip("-")
    return Number.of(float(value), text)


def activation(value: float) -> str:
    """An activation with three significant digits and at most four decimals."""
    size = abs(value)
    digits = 2 if size == 0 else min(4, max(0, 2 - math.floor(math.log10(size))))
    return real(value, digits)


def signed(value: float, digits: int = 2) -> str:
    """The number with its sign: +4.20 or −4.20."""
    shown = real(value, digits)
    if shown.startswith(MINUS):
        return shown
    return Number.of(shown.value, f"+{shown}") if isinstance(shown, Number) else f"+{shown}"


def literal(text: str) -> str:
    """A text as it is, with its value if it is a number."""
    try:
        return Number.of(float(text) if set(text) & set(".en") else int(text), text)
    except ValueError:
        return text


def flow_text(value: float) -> str:
    """A part of the target's value, with its sign."""
    return signed(value, 2 if abs(value) >= 0.01 else 3)
