"""Numbers as a reader wants them: grouped by thin spaces, real minus signs, sensible digits."""

import math

THIN = "\u00a0"
"""Text fonts' plain space is as thin as a thin space should be, and this one never breaks."""
MINUS = "\u2212"
UNKNOWN = "\u2013"


def count(number: int) -> str:
    """The number with its thousands apart: 9 271."""
    return f"{number:,}".replace(",", THIN).replace("-", MINUS)


def short_count(number: int) -> str:
    """Exact up to 9 999, then 508 k, 2.1 M."""
    for size, letter in ((1_000_000_000, "G"), (1_000_000, "M"), (10_000, "k")):
        if number >= size:
            scaled = number / (1000 if letter == "k" else size)
            return f"{scaled:.{1 if scaled < 10 else 0}f}{THIN}{letter}"
    return count(number)


def percent(share: float) -> str:
    """1.82 %, with three significant digits; a share too small for them reads < 0.001 %."""
    value = 100 * share
    if 0 < value < 0.001:
        return f"<{THIN}0.001{THIN}%"
    digits = 0 if value == 0 else min(3, max(0, 2 - math.floor(math.log10(abs(value)))))
    return f"{value:.{digits}f}{THIN}%".replace("-", MINUS)


def share_of_whole(share: float) -> str:
    """99.97 %: two decimals, and never rounded up to 100."""
    value = 100 * share
    if 99.99 < value < 100:
        return f">{THIN}99.99{THIN}%"
    return f"{value:.2f}{THIN}%".replace("-", MINUS)


def real(value: float | None, digits: int = 2) -> str:
    """4.96; a dash for what was not measured."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    shown = f"{value:.{digits}f}"
    return shown.replace("-", MINUS) if float(shown) else shown.lstrip("-")


def activation(value: float) -> str:
    """An activation with three significant digits and at most four decimals."""
    size = abs(value)
    digits = 2 if size == 0 else min(4, max(0, 2 - math.floor(math.log10(size))))
    return real(value, digits)


def signed(value: float, digits: int = 2) -> str:
    """The number with its sign, whichever it is: +4.20 or −4.20."""
    shown = real(value, digits)
    return shown if shown.startswith(MINUS) else f"+{shown}"


def flow_text(value: float) -> str:
    """An amount of the target's value, with its sign."""
    return signed(value, 2 if abs(value) >= 0.01 else 3)
