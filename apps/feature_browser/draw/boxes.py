"""Boxes: titled cards, names with values, bars, and single messages."""

from collections.abc import Sequence

from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.numbers import count


def boxed(title: str, body: Html, *, hint: str = "", note: Html = EMPTY) -> Html:
    """A titled box, with a hint or something else beside the title."""
    if hint:
        note = html('<span class="hint">{t}</span>', t=hint)
    return html(
        '<section class="card"><h2>{title}{note}</h2>{body}</section>',
        title=title, note=note, body=body,
    )  # fmt: skip


def bar(share: float) -> Html:
    """A bar from 0 to 1; hidden from screen readers, since its number is beside it."""
    return html(
        '<div class="bar" aria-hidden="true"><i style="width:{w}%"></i></div>',
        w=f"{100 * min(1.0, max(0.0, share)):.1f}",
    )


def pairs(rows: Sequence[tuple[str, str]]) -> Html:
    """Names and values in two columns."""
    body = joined(html("<dt>{name}</dt><dd>{value}</dd>", name=n, value=v) for n, v in rows)
    return html("<dl>{body}</dl>", body=body)


def message(title: str, text: str, *, command: str = "", after: Html = EMPTY) -> Html:
    """A card with a problem and what to do about it."""
    return html(
        '<section class="card message" role="status"><h1>{title}</h1><p>{text}</p>{command}{after}'
        "</section>",
        title=title,
        text=text,
        command=html("<pre><code>{c}</code></pre>", c=command) if command else EMPTY,
        after=after,
    )


def no_such_latent(asked: str | None, n_latents: int, first: str) -> Html:
    """The message for a latent that does not exist; `first` is a link to latent 0."""
    return message(
        f"There is no latent {asked}",
        f"This run's SAE has {count(n_latents)} latents, numbered 0 to {n_latents - 1}.",
        after=html('<p><a href="{h}">Show latent 0</a></p>', h=first),
    )


def alone(content: Html) -> Html:
    """`content` as the only content of a view."""
    return html('<div class="page wide">{content}</div>', content=content)
