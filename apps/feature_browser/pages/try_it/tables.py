"""The tables of Try it: the latents of one prompt, or of two side by side."""

import numpy as np

from feature_browser.data.address import link, setting
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.names import named
from feature_browser.draw.numbers import UNKNOWN, activation, count, percent, real, signed
from feature_browser.draw.tables import Column, anchor, cell, metered, page_of, table
from feature_browser.live.prompt import PromptReading
from feature_browser.pages.try_it.address import TryAddress
from feature_browser.pages.try_it.bench import Bench
from feature_browser.pages.try_it.lists import PAIR_SORTS, SORTS, Found, compare, order, order_pair
from saelab.console import visible

ROWS = 40


def latents_table(bench: Bench, reading: PromptReading, latents: Found, at: int | None) -> Html:
    """The latents that fire, forty at a time."""
    sort = bench.address.sort if bench.address.sort in SORTS else "value"
    target = visible(reading.target.text).strip()
    where = [
        Column("At", "the token of that value"),
        Column("Tokens", "how many it fires on", numeric=True),
    ]
    columns = [
        _column(bench, "latent", "Latent", "its number; the circle lights up the prompt", sort),
        Column("Name", "its label, the known feature it matches, or what its examples share"),
        _column(bench, "value", "Value", "largest activation on these tokens", sort),
        Column("Of its maximum", "share of its largest activation on the corpus", numeric=True),
        *(where if at is None else []),
        Column("Density", "share of the corpus on which it fires", numeric=True),
        _column(bench, "rarity", "Rarity", "value times -ln density", sort),
    ]
    if reading.has_effects:
        columns.append(
            _column(
                bench, "attribution", f"Effect on “{target}”",
                "first-order effect on that logit behind the prompt, less the mean logit", sort,
            )
        )  # fmt: skip
    if not len(latents):
        return html('<p class="sub">No latent fires here.</p>')
    rows, pages = _page(bench.address, order(latents, sort))
    widest = float(np.nan_to_num(np.abs(latents.attribution)).max())
    about = at, widest if reading.has_effects else None
    body = (_row(bench, reading, latents, int(row), about) for row in rows)
    return joined([table(columns, body, "Latents that fire"), pages])


def _row(
    bench: Bench,
    reading: PromptReading,
    latents: Found,
    row: int,
    about: tuple[int | None, float | None],
) -> list[Html]:
    """The cells of a latent; `about`: the token if one is picked, the widest effect if any."""
    at, widest = about
    latent, value = int(latents.latent[row]), float(latents.value[row])
    effect = float(latents.attribution[row])
    where = [
        html("<code>{t}</code>", t=visible(reading.tokens[latents.peak[row]])),
        cell(count(int(latents.n[row]))),
    ]
    return [
        _named(bench, latent),
        named(bench.names.best(latent)),
        cell(activation(value)),
        _share(bench, latent, value),
        *(where if at is None else []),
        cell(UNKNOWN if bench.density is None else percent(float(bench.density[latent]))),
        cell(real(float(latents.rarity[row]), 1)),
        *([] if widest is None else [_effect(effect, widest)]),
    ]


def _effect(effect: float, widest: float) -> Html:
    if np.isnan(effect):
        return cell(UNKNOWN)
    return html(
        '<span class="effect-of {sign}">{value}<i style="width:{w}%"></i></span>',
        sign="neg" if effect < 0 else "pos",
        value=cell(signed(effect, 4 if abs(effect) < 0.01 else 3)),
        w=f"{100 * abs(effect) / widest if widest else 0:.0f}",
    )


def pair_table(bench: Bench, readings: list[PromptReading], latents: tuple[Found, Found]) -> Html:
    """The latents of either prompt with both largest values."""
    sort = bench.address.sort if bench.address.sort in PAIR_SORTS else "difference"
    pair = compare(*latents)
    columns = [
        _column(bench, "latent", "Latent", "its number; the circle lights up both", sort),
        Column("Name", "its label, the known feature it matches, or what its examples share"),
        _column(bench, "first", "In the first", "largest activation there", sort),
        Column("At", "the token of that value", saved="at, in the first"),
        _column(bench, "second", "In the second", "largest activation there", sort),
        Column("At", "the token of that value", saved="at, in the second"),
        _column(bench, "difference", "Difference", "second minus first", sort),
    ]
    if not len(pair):
        return html('<p class="sub">No latent fires in either.</p>')
    rows, pages = _page(bench.address, order_pair(pair, sort))
    peaks = [dict(zip(f.latent.tolist(), f.peak.tolist(), strict=True)) for f in latents]
    widest = float(np.abs(pair.second - pair.first).max())

    def drawn(row: int) -> list[Html]:
        latent = int(pair.latent[row])
        cells = [_named(bench, latent), named(bench.names.best(latent))]
        for side, values in enumerate((pair.first, pair.second)):
            peak = peaks[side].get(latent)
            silent = html('<span class="sub">{none}</span>', none=UNKNOWN)
            cells.append(silent if peak is None else cell(activation(float(values[row]))))
            at = EMPTY if peak is None else visible(readings[side].tokens[peak])
            cells.append(html("<code>{t}</code>", t=at) if at else EMPTY)
        return [*cells, _effect(float(pair.second[row] - pair.first[row]), widest)]

    return joined([table(columns, (drawn(int(row)) for row in rows), "Latents of both"), pages])


def _column(bench: Bench, name: str, title: str, text: str, sort: str) -> Column:
    return Column(
        title,
        text,
        numeric=name != "latent",
        sorted=name == sort,
        href=bench.address.to(sort=name, page=1).href,
        rising=name == "latent",
    )


def _page(address: TryAddress, rows: np.ndarray) -> tuple[np.ndarray, Html]:
    part, links = page_of(address, len(rows), ROWS)
    shown = rows[part]
    told = html(
        '<p class="sub summary">{a} to {b} of {n}</p>',
        a=count(part.start + 1), b=count(part.start + len(shown)), n=count(len(rows)),
    )  # fmt: skip
    return shown, joined([told, links])


def _named(bench: Bench, latent: int) -> Html:
    on = latent == bench.lit
    there = link("latent", run=bench.address.run, latent=latent)
    return html(
        '<button class="light" aria-pressed="{on}" data-set="{set}" title="light up" '
        'aria-label="light up by latent {latent}">{mark}</button> {link}',
        on="true" if on else "false", latent=latent, mark="◉" if on else "○",
        set=setting(latent="" if on else latent), link=anchor(there, latent),
    )  # fmt: skip


def _share(bench: Bench, latent: int, value: float) -> Html:
    if bench.maximum is None or not bench.maximum[latent]:
        return cell(UNKNOWN)
    share = abs(value) / float(bench.maximum[latent])
    return metered(percent(share), share)
