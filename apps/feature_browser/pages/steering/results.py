"""Results of steering: success by filter, and known concepts against difference-in-means."""

from collections.abc import Callable
from typing import Any

import numpy as np

from feature_browser.data.address import link
from feature_browser.data.catalogue import RunCard
from feature_browser.data.reading import evaluation
from feature_browser.draw.boxes import boxed, message
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.numbers import UNKNOWN, count, percent, real, signed
from feature_browser.draw.tables import Column, cell, table
from feature_browser.pages.steering.address import SteeringAddress
from saelab.config import UsageError

SHOWN = 6
Draw = Callable[[dict[str, Any]], Html]


def success(card: RunCard, address: SteeringAddress) -> Html:
    """The gain of filtering by score, or the command that measures it."""
    command = f"saelab steer {card.path.as_posix()} --success 50"
    title = "Does a high score pay?"
    return _part(card, "steering_success", title, command, lambda v: _success(v, address))


def concepts(card: RunCard) -> Html:
    """Steering toward known concepts by several methods, or the command that measures it."""
    command = f"saelab steer {card.path.as_posix()} --concepts"
    return _part(card, "steering_concepts", "Known concepts, at the same KL", command, _concepts)


def _part(card: RunCard, name: str, title: str, command: str, draw: Draw) -> Html:
    try:
        values = evaluation(card, name)
        if values is not None:
            return boxed(title, draw(values))
        text = html('<p class="sub">Not computed. Run</p><pre><code>{c}</code></pre>', c=command)
    except UsageError as error:
        text = html('<p class="sub">{e}</p>', e=error)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        text = html(
            '<p class="sub">evaluation/{name}.json does not say what it should ({error}). Run</p>'
            "<pre><code>{c}</code></pre>",
            name=name, error=repr(error), c=command,
        )  # fmt: skip
    return boxed(title, text)


def _success(values: dict[str, Any], address: SteeringAddress) -> Html:
    columns = [
        Column("Kept"),
        Column("n", "latents that the filter keeps", numeric=True),
        Column("Success", "promised tokens a text, at the latent's best strength", numeric=True),
        Column("More", "than the plain model says of them", numeric=True),
        Column("Ratio", "to all latents", numeric=True),
    ]
    rows = [
        [
            cell(_filter_name(row)),
            cell(count(int(row["n"]))),
            cell(real(row["success"])),
            cell(signed(row["gain"])),
            cell(real(row["ratio"])),
        ]
        for row in _telling(values["filters"])
    ]
    caption = "Steering success by filter"
    return joined([table(columns, rows, caption), _best(values["latents"], address)])


def _telling(filters: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The filters by a limit; of several that keep the same number of latents, the strictest."""
    by_number = {(r["score"], r["n"]): r for r in filters if r["share"] is None}
    all_of_them = by_number.get(("none", max((n for _, n in by_number), default=0)))
    n = all_of_them["n"] if all_of_them else -1
    whole = ("none", "random")
    return [row for (score, kept), row in by_number.items() if score in whole or kept < n]


def _filter_name(row: dict[str, Any]) -> str:
    if row["threshold"] is None:
        return "random directions" if row["score"] == "random" else "all"
    return f"{row['score']} ≥ {row['threshold']:g}"


def _best(latents: list[dict[str, Any]], address: SteeringAddress) -> Html:
    best = sorted(latents, key=lambda row: row["plain_success"] - row["success"])[:SHOWN]
    items = joined(
        html(
            '<li><a href="{href}">{latent}</a> says {success} a text at {factor} a_max (plain '
            "{plain}), perplexity {perplexity}</li>",
            href=link("latent", run=address.run, latent=int(row["latent"])),
            latent=f"{int(row['latent'])}{' (negative)' if row['sign'] < 0 else ''}",
            success=real(row["success"]),
            factor=f"{row['factor']:g}",
            plain=real(row["plain_success"]),
            perplexity=real(row["perplexity"], 1),
        )
        for row in best
    )
    return html(
        '<p class="sub">Of {n} steered, most is gained by</p><ol class="found">{items}</ol>',
        n=count(len(latents)), items=items,
    )  # fmt: skip


def _concepts(values: dict[str, Any]) -> Html:
    gains: dict[str, list[float]] = {}
    for row in values["rows"]:
        gains.setdefault(str(row["method"]), []).append(float(row["steered"]["gain"]))
    ideal = float(np.mean(list(values["ideal"].values())))
    ordered = sorted(gains.items(), key=lambda item: -float(np.mean(item[1])))
    columns = [
        Column("Method"),
        Column("Gain", "probability moved to the concept's tokens, mean", numeric=True),
        Column("Of ideal", "share of what any steering could move at this KL", numeric=True),
        Column("Concepts", numeric=True),
    ]
    rows = [
        [
            cell(method),
            cell(signed(float(np.mean(found)))),
            cell(percent(float(np.mean(found)) / ideal) if ideal else UNKNOWN),
            cell(len(found)),
        ]
        for method, found in ordered
    ]
    return table(columns, rows, "Concept steering by method")


def nothing_yet(card: RunCard) -> Html:
    """How to compute the scores."""
    text = (
        "Steering scores say of every latent whether it fires on the tokens that it promises "
        "(input score) and whether the model says them when it is added (output score). "
        "They need the run's language model, once."
    )
    if not card.features_path.is_file():
        text += " The run's features come first: saelab features, then"
    return message(
        "Steering was not computed", text, command=f"saelab steer {card.path.as_posix()} --all"
    )


def several_sites(card: RunCard) -> Html:
    """Why a run of several sites is not steered with."""
    text = (
        f"{card.name} reads {card.n_sites} sites, and steering changes the model at one. Steer "
        "with an SAE of one site; what these latents do to a prediction, a circuit says."
    )
    circuit = html('<p><a href="{href}">circuits</a></p>', href=link("circuit", run=card.name))
    return message("Steering needs one site", text, after=circuit if card.in_circuits else EMPTY)
