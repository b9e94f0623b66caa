"""HTML that is safe by construction: template values are escaped unless they are Html.

Values are also isolated, so a right-to-left label does not reorder its neighbours.
"""

import re
from collections.abc import Iterable
from html import escape

from saelab.console import isolated

_CODE = re.compile(r"&lt;[^&<>\n]{1,40}&gt;|⟨[0-9A-F]+⟩")
"""A name in angle brackets, which right-to-left text would break up."""


class Html(str):
    """Text that is HTML already. Only `html` and `joined` make it."""

    __slots__ = ()


def html(template: str, **values: object) -> Html:
    """`template` with its `{names}` filled; values that are not Html are escaped."""
    safe = {
        name: value if isinstance(value, Html) else escape(isolated(str(value)))
        for name, value in values.items()
    }
    return Html(template.format_map(safe))


def escaped(text: str) -> Html:
    """Text that is only escaped, for the value of a field."""
    return Html(escape(text))


def running(text: str) -> Html:
    """A part of running text: in the whole's direction, except for codes like <0xF0>."""
    return Html(_CODE.sub(r"<bdi>\g<0></bdi>", escape(text)))


def joined(parts: Iterable[Html]) -> Html:
    """The parts, one after the other."""
    return Html("".join(parts))


EMPTY = Html("")
