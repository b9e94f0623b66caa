"""Which latents steer: input score against output score, the best ones, and filters."""

import numpy as np
import streamlit as st
from jaxtyping import Bool, Int
from numpy import ndarray

from feature_browser.data.address import numbers_of
from feature_browser.data.catalogue import Catalogue, RunCard
from feature_browser.data.reading import steering_scores, steering_stamp
from feature_browser.draw import scatter
from feature_browser.draw.boxes import alone, boxed
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.numbers import UNKNOWN, count, real
from feature_browser.draw.tables import (
    Column,
    anchor,
    cell,
    choice,
    metered,
    page_of,
    sided,
    sortable,
    table,
)
from feature_browser.pages import Page
from feature_browser.pages.steering.address import SteeringAddress
from feature_browser.pages.steering.code import steering_elsewhere
from feature_browser.pages.steering.live_view import live_steering_view, parts
from feature_browser.pages.steering.results import (
    concepts,
    nothing_yet,
    several_sites,
    success,
)
from feature_browser.shell.canvas import change, search_field, show
from saelab.analysis.steering.records import HIGH_INPUT, HIGH_OUTPUT, SteeringScores
from saelab.console import visible

ROWS = 25
UNSCORED = -0.055
"""The place on the axis of rows without an input score."""
SEARCH = "search-steering"
N_WORDS = 6


def steering_view(_: Catalogue, card: RunCard, address: SteeringAddress) -> None:
    """Draw the scores of the run, or how to compute them; or steering by hand."""
    if card.n_sites > 1:
        show(alone(several_sites(card)), "steering")
        return
    show(parts(address), "parts")
    if address.part == "live":
        live_steering_view(card, address)
        return
    scores = steering_scores(card)
    if scores is None:
        show(alone(nothing_yet(card)), "steering")
        return
    _search_box(address)
    kept = keep(scores, address)
    ordered = order(scores, np.flatnonzero(kept), address.sort)
    part, links = page_of(address, len(ordered), ROWS)
    content = [
        _summary(scores, address),
        html(
            '<div class="two wide-left"><div>{picture}{concepts}</div><div>{success}</div></div>',
            picture=_kept_picture(card, steering_stamp(card), address.to(page=1)),
            concepts=concepts(card),
            success=success(card, address),
        ),
        _found(scores, address, len(ordered)),
        _table(scores, address, ordered[part]),
        links,
    ]
    show(alone(joined(content)), "steering")


def keep(scores: SteeringScores, address: SteeringAddress) -> Bool[ndarray, " row"]:
    """The rows that the address's filters keep: part, box, search."""
    high_in, high_out = scores.input >= HIGH_INPUT, scores.output >= HIGH_OUTPUT
    chosen = {
        "output": high_out,
        "input": high_in,
        "both": high_in & high_out,
        "neither": ~high_in & ~high_out,
    }
    kept = chosen.get(address.keep, np.ones(len(scores), dtype=bool)).copy()
    if box := numbers_of(address.box):
        left, right, bottom, top = box
        x = _across(scores)
        kept &= (x >= left) & (x <= right) & (scores.output >= bottom) & (scores.output <= top)
    if text := address.q.strip().lower():
        kept &= _matching(scores, text)
    return kept


def order(
    scores: SteeringScores, rows: Int[ndarray, " found"], sort: str
) -> Int[ndarray, " found"]:
    """`rows` sorted by the chosen column: numbers and ranks ascending, others descending."""
    values = getattr(scores, sort)[rows]
    if sort in {"latent", "rank"}:
        return rows[np.argsort(values, kind="stable")]
    # A missing input score sorts after all others.
    return rows[np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")]


def _across(scores: SteeringScores) -> ndarray:
    return np.where(np.isnan(scores.input), UNSCORED, scores.input)


def _matching(scores: SteeringScores, text: str) -> Bool[ndarray, " row"]:
    """Rows of the latent `text`, or with a raised or fired-on token that contains it."""
    tokens = [i for i, word in enumerate(scores.vocabulary) if text in word.lower()]
    promised = np.isin(scores.lens[:, :N_WORDS], tokens).any(axis=1)
    fired = np.isin(scores.peaks, tokens).any(axis=1)
    found = np.asarray(promised | fired)
    if text.isdecimal() and len(text) < 10:
        found = found | (scores.latent == int(text))
    return found


def _search_box(address: SteeringAddress) -> None:
    with st.container(key="controls", horizontal=True):
        search_field(
            SEARCH,
            address.q,
            label="Search latents by number or token",
            hint="Search a number or a token",
            width=260,
            on_change=_searched,
        )
        show(_filters(address), "context")


def _searched() -> None:
    change(SteeringAddress, lambda now: now.to(q=st.session_state[SEARCH], page=1))


def _filters(address: SteeringAddress) -> Html:
    names = {
        "": "all",
        "output": f"output ≥ {HIGH_OUTPUT}",
        "input": f"input ≥ {HIGH_INPUT}",
        "both": "both",
        "neither": "neither",
    }
    options = [
        (name, address.to(keep=part, page=1), part == address.keep) for part, name in names.items()
    ]
    return choice("show", options)


def _summary(scores: SteeringScores, address: SteeringAddress) -> Html:
    figures = scores.summary()
    lift = figures.get("lift")
    text = (
        f"Of {count(int(figures['n_with_input']))} with an input score, "
        f"{count(int(figures['high_input']))} fire on what they promise (≥ {HIGH_INPUT}) and "
        f"{count(int(figures['high_both']))} do both"
    )
    if lift is not None:
        text += f", {real(lift)} times as many as if the two were independent"
    return html(
        '<h1 class="headline">{n} of {all} make the model say what they promise</h1>'
        '<p class="sub">Output score of at least {limit}, added behind “{prompt}”. {text}.</p>',
        n=count(int(figures["high_output"])),
        all=f"{count(len(scores))} {'latents' if (scores.sign > 0).all() else 'poles'}",
        limit=HIGH_OUTPUT, prompt=visible(str(scores.facts.get("prompt", ""))), text=text,
    )  # fmt: skip


@st.cache_resource(
    max_entries=32, show_spinner=False, hash_funcs={RunCard: repr, SteeringAddress: repr}
)
def _kept_picture(card: RunCard, stamp: int, address: SteeringAddress) -> Html:
    """The picture of the scores of `stamp`, cached: tens of thousands of latents take a while."""
    scores = steering_scores(card)
    assert scores is not None
    return _picture(scores, address, keep(scores, address))


def _picture(scores: SteeringScores, address: SteeringAddress, kept: Bool[ndarray, " row"]) -> Html:
    x, y = _across(scores), scores.output.astype(np.float64)
    known = np.isfinite(y)
    points = scatter.Points(x[known], y[known], (scores.sign < 0)[known], kept[known])
    rows = np.flatnonzero(known)
    axes = scatter.Axes(
        "input score: fires on what it promises · left of 0: too few examples",
        "output score: added, the model says it",
        (-0.1, 1.04),
        (min(-0.04, float(y[known].min(initial=0.0)) - 0.04), 1.04),
    )

    def lead(found: ndarray, box: tuple[float, float, float, float]) -> tuple[str, str]:
        if len(found) == 1:
            row = int(rows[found[0]])
            return address.visit("latent", latent=int(scores.latent[row])), _tip(scores, row)
        corners = ",".join(f"{edge:.5g}" for edge in box)
        return address.to(
            box=corners, page=1
        ).href, f"{count(len(found))} here · click to list them"

    picture = scatter.scatter(points, axes, lead, _thresholds(axes))
    signs = " · ◆ negative poles" if (scores.sign < 0).any() else ""
    hint = f"larger marks stand for several{signs}"
    return boxed("Input against output score", picture, hint=hint)


def _thresholds(axes: scatter.Axes) -> Html:
    """The limits of the two filters above."""
    x, y = scatter.place_x(HIGH_INPUT, axes), scatter.place_y(HIGH_OUTPUT, axes)
    return html(
        '<line class="limit" x1="{x}" x2="{x}" y1="{t}" y2="{b}"/>'
        '<line class="limit" x1="{l}" x2="{r}" y1="{y}" y2="{y}"/>',
        x=f"{x:.1f}", y=f"{y:.1f}", t=scatter.TOP, b=scatter.BASE, l=scatter.LEFT,
        r=scatter.WIDTH - 8,
    )  # fmt: skip


def _tip(scores: SteeringScores, row: int) -> str:
    lines = [
        f"{scores.latent[row]}{' (negative)' * bool(scores.sign[row] < 0)}   "
        f"output {real(float(scores.output[row]))}   input {real(float(scores.input[row]))}",
        "promises " + _plain_words(scores, scores.lens[row]),
        "fires on " + _plain_words(scores, scores.peaks[row]),
    ]
    return "\n".join(lines)


def _plain_words(scores: SteeringScores, tokens: ndarray) -> str:
    return " ".join(visible(word).strip() for word in scores.words(tokens[:N_WORDS])) or UNKNOWN


def _found(scores: SteeringScores, address: SteeringAddress, found: int) -> Html:
    hidden = len(scores) - found
    away = address.fresh(sort=address.sort)
    undo = html(' · <a href="{h}">show all</a>', h=away.href) if hidden else EMPTY
    boxed_in = " · one cell of the picture" if address.box else ""
    return html(
        '<p class="sub summary">{n} of {all} · hidden by filter: {hidden}{box}{undo}</p>',
        n=count(found), all=count(len(scores)), hidden=count(hidden), box=boxed_in, undo=undo,
    )  # fmt: skip


def _table(scores: SteeringScores, address: SteeringAddress, rows: Int[ndarray, " shown"]) -> Html:
    heads = {
        "latent": ("Latent", "its number"),
        "output": ("Output score", "how much likelier the promised tokens become when it is added"),
        "input": ("Input score", "share of its promised tokens among those it fires on most"),
        "probability": (
            "P(promised)",
            "the steered model's probability of the best promised token",
        ),
        "rank": ("Rank", "tokens that the steered model finds likelier than that one"),
    }
    columns = sortable(heads, address, rising=("latent", "rank"))
    columns += [
        Column("Promises", "tokens its decoder row raises most"),
        Column("Fires on", "commonest tokens of its strongest firings"),
    ]
    if not len(rows):
        return html('<p class="sub">No latent passes these filters.</p>')
    return table(columns, (_row(scores, address, int(row)) for row in rows), "Steering scores")


def _row(scores: SteeringScores, address: SteeringAddress, row: int) -> list[Html]:
    output, given = float(scores.output[row]), float(scores.input[row])
    missing = f"too few examples: {scores.n_examples[row]}"
    return [
        anchor(
            address.visit("latent", latent=int(scores.latent[row])),
            sided(int(scores.latent[row]), int(scores.sign[row])),
        ),
        metered(real(output, 3), output),
        html('<span class="sub" title="{t}">{none}</span>', t=missing, none=UNKNOWN)
        if np.isnan(given)
        else metered(real(given), given),
        cell(real(float(scores.probability[row]), 3)),
        cell(count(int(scores.rank[row]))),
        _words(scores, scores.lens[row]),
        _words(scores, scores.peaks[row]),
    ]


def _words(scores: SteeringScores, tokens: ndarray) -> Html:
    words = scores.words(tokens[:N_WORDS])
    return joined(html("<code>{w}</code> ", w=visible(word)) for word in words)


PAGE = Page(
    "Steering", SteeringAddress, steering_view, needs_decoder=True, elsewhere=steering_elsewhere,
    asks="Which latents move the model?",
)  # fmt: skip
