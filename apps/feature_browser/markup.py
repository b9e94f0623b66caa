"""HTML that is safe by construction: what enters a template is escaped unless it is Html."""

from collections.abc import Iterable
from html import escape


class Html(str):
    """Text that is HTML already. Only `html` and `joined` make it."""

    __slots__ = ()


def html(template: str, **values: object) -> Html:
    """`template` with its `{names}` filled; values that are not Html are escaped."""
    safe = {
        name: value if isinstance(value, Html) else escape(str(value))
        for name, value in values.items()
    }
    return Html(template.format_map(safe))


def joined(parts: Iterable[Html]) -> Html:
    """The parts, one after the other."""
    return Html("".join(parts))


EMPTY = Html("")
