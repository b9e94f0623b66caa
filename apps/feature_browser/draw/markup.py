"""HTML that is safe by construction: what enters a template is escaped unless it is Html.

And set apart: a label that is written from right to left does not turn round what stands beside it.
"""

import re
from collections.abc import Iterable
from html import escape

from saelab.console import isolated

_CODE = re.compile(r"&lt;[^&<>\n]{1,40}&gt;|⟨[0-9A-F]+⟩")
"""A name in brackets, which text from right to left would take apart."""


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
    """Text that is escaped only: the value of a field."""
    return Html(escape(text))


def running(text: str) -> Html:
    """A part of a text that runs on: in the direction of the whole, but for codes like <0xF0>."""
    return Html(_CODE.sub(r"<bdi>\g<0></bdi>", escape(text)))


def joined(parts: Iterable[Html]) -> Html:
    """The parts, one after the other."""
    return Html("".join(parts))


EMPTY = Html("")
