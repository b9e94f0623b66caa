"""A prompt as a strip of tokens that can be picked, and lit up by one latent."""

from collections.abc import Callable

import numpy as np

from feature_browser.data.address import setting
from feature_browser.draw.markup import EMPTY, Html, escaped, html, joined, running
from feature_browser.draw.numbers import activation, percent
from feature_browser.live.prompt import PromptReading
from feature_browser.pages.try_it.lists import Found, order
from saelab.console import isolated, visible

IN_TIP = 5


def strip(
    reading: PromptReading,
    lit: dict[int, float],
    strongest: float,
    tip: Callable[[int], str],
    *,
    at: int | None = None,
    pick: bool = True,
) -> Html:
    """The tokens in a row, shaded by `lit` (value by position) of `strongest`.

    Each can be picked, which puts its position into the address, unless `pick` is false.
    """
    gap = escaped(reading.gap)
    parts: list[Html] = []
    for position, text in enumerate(reading.pieces):
        value = lit.get(position, 0.0)
        share = min(1.0, abs(value) / strongest) if strongest else 0.0
        template = _PICKED if pick else _PLAIN
        token = html(
            template,
            lit=Html(f" on {'neg' if value < 0 else 'pos'}") if value else EMPTY,
            a=f"{share:.2f}",
            special=Html(" special") if reading.unread[position] else EMPTY,
            now="true" if position == at else "false",
            set=setting(pos="" if position == at else position, page=""),
            tip=tip(position) + (f"\nlit: {activation(value)}" if value else ""),
            text=running(visible(text)),
        )
        parts += [token, gap]
    return html('<p class="text strip" dir="auto">{tokens}</p>', tokens=joined(parts))


_PICKED = (
    '<button class="tok{lit}{special}" style="--a:{a}" aria-pressed="{now}" data-set="{set}" '
    'data-tip="{tip}">{text}</button>'
)
_PLAIN = '<span class="tok{lit}{special}" style="--a:{a}" data-tip="{tip}">{text}</span>'


def token_tip(
    reading: PromptReading, position: int, latents: Found, name: Callable[[int], str], sort: str
) -> str:
    """The token, how likely it was, and its first few latents in the chosen order."""
    chance = np.exp(reading.log_prob[position])
    likely = "" if np.isnan(chance) else f" · probability {percent(float(chance))}"
    lines = [f"{isolated(visible(reading.tokens[position]).strip())} · position {position}{likely}"]
    if reading.unread[position]:
        return "\n".join([*lines, reading.unread[position]])
    rows = order(latents, sort)
    for row in rows[:IN_TIP]:
        latent = int(latents.latent[row])
        lines.append(f"{latent:>6}  {activation(float(latents.value[row]))}  {name(latent)}")
    more = len(rows) - IN_TIP
    if more > 0:
        lines.append(f"and {more} more: click")
    return "\n".join(lines if len(rows) else [*lines, "no latent fires here"])
