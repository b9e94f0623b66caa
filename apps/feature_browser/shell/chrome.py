"""The bar at the top of every view: where one is, and of which run."""

from collections.abc import Mapping

from feature_browser.data.address import AbstractAddress
from feature_browser.data.catalogue import RunCard
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.numbers import count, real, share_of_whole


def top_bar(titles: Mapping[str, str], address: AbstractAddress, card: RunCard | None) -> Html:
    """The product, the pages by their titles, and the run's identity and figures."""
    views = joined(
        html(
            '<a href="{href}"{on}>{title}</a>',
            href=address.visit(view),
            on=Html(' aria-current="page"') if view == address.view else EMPTY,
            title=title,
        )
        for view, title in titles.items()
    )
    return html(
        '<nav class="top" aria-label="Views"><b class="brand">saelab</b>{views}'
        '<span class="chips">{chips}</span></nav>',
        views=views,
        chips=_chips(address, card) if card else EMPTY,
    )


def _chips(address: AbstractAddress, card: RunCard) -> Html:
    identity = html(
        '<a class="chip whose" href="{href}" title="{variant} · {model} · {site}\n{path}">'
        "<b>{variant}</b> · {model} · {site}</a>",
        href=address.visit("runs"),
        path=card.path.as_posix(),
        variant=card.variant,
        model=card.model,
        site=card.site,
    )
    figures = [
        ("L0", None if card.l0 is None else real(card.l0, 1), "latents active per token"),
        (
            "FVU",
            None if card.fvu is None else real(card.fvu, 3),
            "variance unexplained on held-out text; 0 is perfect",
        ),
        (
            "CE recovered",
            None if card.ce_recovered is None else share_of_whole(card.ce_recovered),
            "of the cross-entropy that zeros in this place would cost",
        ),
        (
            "dead",
            None if card.dead is None else f"{count(card.dead)} of {count(card.d_sae)}",
            "latents that never fired on held-out text",
        ),
    ]
    shown = joined(
        html(
            '<span class="chip" title="{help}">{name} <b>{value}</b></span>',
            help=text,
            name=name,
            value=value,
        )
        for name, value, text in figures
        if value is not None
    )
    return html("{identity}{shown}", identity=identity, shown=shown)
