"""A prompt as a table of its tokens, each with its first few latents and their names."""

import numpy as np

from feature_browser.data.address import link
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.names import named
from feature_browser.draw.numbers import UNKNOWN, activation, percent
from feature_browser.draw.tables import Column, anchor, cell, choice, part, table, unseen
from feature_browser.live.prompt import PromptReading
from feature_browser.pages.try_it.bench import Bench
from feature_browser.pages.try_it.lists import found, order
from saelab.console import visible

SHOWN = ("First", "Second", "Third")
ORDERS = {"value": "strongest", "rarity": "rarest", "attribution": "most effect"}


def by_choice(bench: Bench) -> Html:
    """Links between the list of latents and that of tokens, and the order in the latter."""
    address = bench.address
    ways = [("latent", address.to(by="", page=1), not address.by),
            ("token", address.to(by="token", pos="", page=1), bool(address.by))]  # fmt: skip
    orders = [(title, address.to(sort=name), _sort(bench) == name)
              for name, title in ORDERS.items()]  # fmt: skip
    return joined([choice("by", ways), choice("order", orders) if address.by else EMPTY])


def token_table(bench: Bench, reading: PromptReading) -> Html:
    """Every token with its probability and its first latents in the chosen order."""
    columns = [
        Column("At", "its position", numeric=True),
        Column("Token"),
        Column("Probability", "given the tokens before it", numeric=True),
        *(Column(title, "a latent that fires there, its value, and its name") for title in SHOWN),
        Column("Latents", "how many fire there", numeric=True),
    ]
    rows = (_row(bench, reading, position) for position in range(len(reading.tokens)))
    return table(columns, rows, "Latents by token")


def _sort(bench: Bench) -> str:
    return bench.address.sort if bench.address.sort in ORDERS else "value"


def _row(bench: Bench, reading: PromptReading, position: int) -> list[Html]:
    latents = found(reading, bench.density, position)
    first = order(latents, _sort(bench))[: len(SHOWN)].tolist()
    chance = float(np.exp(reading.log_prob[position]))
    cells = [_latent(bench, int(latents.latent[row]), float(latents.value[row])) for row in first]
    why = reading.unread[position]
    none = html('<span class="sub">{w}</span>', w=why) if why else EMPTY
    return [
        cell(position),
        html("<code>{t}</code>", t=visible(reading.tokens[position])),
        cell(UNKNOWN if np.isnan(chance) else percent(chance)),
        *[*cells, none, EMPTY, EMPTY, EMPTY][: len(SHOWN)],
        cell(len(latents)),
    ]


def _latent(bench: Bench, latent: int, value: float) -> Html:
    there, name = link("latent", run=bench.address.run, latent=latent), bench.names.best(latent)
    return html(
        '<span class="shared">{link} <b>{value}</b><br>{name}{saved}</span>',
        link=anchor(there, latent),
        value=part(activation(value), "value"),
        name=named(name),
        saved=unseen(name.text, "name"),
    )
