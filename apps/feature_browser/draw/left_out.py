"""The line that says where in a text which SAE is not applied."""

from collections.abc import Mapping, Sequence

from feature_browser.draw.markup import EMPTY, Html, html
from feature_browser.draw.tokens import visible


def left_out_line(tokens: Sequence[str], left_out: Mapping[str, Sequence[int]]) -> Html:
    """Each SAE with its tokens; empty where all are applied everywhere.

    SAEs that are left out at the same tokens are named together.
    """
    together: dict[tuple[int, ...], list[str]] = {}
    for name, places in left_out.items():
        if places:
            together.setdefault(tuple(places), []).append(name)
    if not together:
        return EMPTY
    parts = []
    for places, names in together.items():
        words = (f"{visible(tokens[place]).strip() or '␣'} @{place}" for place in places)
        parts.append(f"{', '.join(names)} at {', '.join(words)}")
    return html(
        '<p class="sub">Not applied, since training left such tokens out: {where}. There the error '
        "is the whole activation.</p>",
        where="; ".join(parts),
    )
