"""Up to four latents side by side, of one run or of several."""

from dataclasses import dataclass

import streamlit as st

from feature_browser.data.address import AbstractAddress, is_number, link, parameter
from feature_browser.data.catalogue import Catalogue, RunCard, latent_number
from feature_browser.data.labels import LatentNames
from feature_browser.data.reading import OpenRun, open_run, readable_scores
from feature_browser.draw.boxes import alone, boxed, message, pairs
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.numbers import activation, count, percent, real
from feature_browser.draw.pictures import histogram, logit_effects
from feature_browser.draw.tables import choice
from feature_browser.draw.tokens import TextStyle, example_text
from feature_browser.pages import Page
from feature_browser.shell.canvas import change, show
from saelab.analysis.records import LatentRecord
from saelab.config import UsageError

MOST, EXAMPLES, AROUND, OFFERED = 4, 6, 8, 8
FIELD = "beside-latents"


@dataclass(frozen=True, kw_only=True)
class BesideAddress(AbstractAddress):
    """`latents`: numbers with commas between; RUN:NUMBER for one of another run."""

    view = "beside"
    latents: str = parameter("")


@dataclass(frozen=True)
class _Shown:
    """A latent to be shown, or why it cannot be."""

    said: str
    run: OpenRun | None = None
    latent: int = 0
    problem: str = ""


def beside_view(catalogue: Catalogue, card: RunCard, address: BesideAddress) -> None:
    """Draw the latents that the address names."""
    if st.session_state.get(FIELD, "").strip() != address.latents.strip():
        st.session_state[FIELD] = address.latents
    with st.container(key="controls", horizontal=True):
        st.text_input(
            f"Latents, up to {MOST}; RUN:NUMBER for another run's",
            key=FIELD,
            placeholder="5, 17, other-run:3",
            on_change=_typed,
            width=420,
        )
    said = [part.strip() for part in address.latents.split(",") if part.strip()]
    in_hand = dict(address.carried).get("latent", "")
    asked = [_found(catalogue, card, one) for one in said or [in_hand] if one]
    found = [one for one in asked if one.run is not None]
    if not asked:
        text = "Type their numbers, or follow “side by side” from a latent's neighbours."
        show(alone(message("Which latents?", text)), "beside")
        return
    shown, left = found[:MOST], [one.said for one in found[MOST:]]
    parts = [one.said for one in shown]
    problems = [one.problem for one in asked if one.run is None]
    if left:
        problems.append(f"{MOST} are shown, {len(left)} are not: {', '.join(left)}.")
    columns = joined(_column(one, _without(address, parts, i)) for i, one in enumerate(shown))
    content = html(
        '<div class="page beside">{problems}{more}<div class="columns" style="--n:{n}">'
        "{columns}</div></div>",
        n=max(1, len(shown)),
        problems=joined(html('<p class="notice" role="status">{p}</p>', p=p) for p in problems),
        more=_more(address, shown, in_hand) if len(shown) < MOST else EMPTY,
        columns=columns,
    )
    show(content, "beside")


def _more(address: BesideAddress, shown: list[_Shown], in_hand: str) -> Html:
    """Links that put more latents beside those that are shown: that in hand, and neighbours."""
    here = [one for one in shown if one.run and one.run.card.name == address.run]
    offered = [int(in_hand)] if is_number(in_hand, 9) else []
    for one in here:
        record = one.run.features[one.latent] if one.run else None
        offered += [other for other, _ in record.neighbours] if record else []
    there = {one.latent for one in here}
    new = [one for one in dict.fromkeys(offered) if one not in there][:OFFERED]
    said = [one.said for one in shown]
    options = [(str(n), address.to(latents=",".join([*said, str(n)])), False) for n in new]
    return choice("beside them", options) if options else EMPTY


def _typed() -> None:
    change(BesideAddress, lambda now: now.to(latents=st.session_state[FIELD]))


def _without(address: BesideAddress, parts: list[str], place: int) -> str:
    return address.to(latents=",".join(parts[:place] + parts[place + 1 :])).href


def _found(catalogue: Catalogue, card: RunCard, said: str) -> _Shown:
    name, _, number = said.rpartition(":")
    there = catalogue.runs.get(name) if name else card
    if there is None:
        return _Shown(said, problem=f"There is no run {name}.")
    try:
        run = open_run(there)
    except UsageError as error:
        return _Shown(said, problem=str(error))
    latent = latent_number(number, run.card.d_sae)
    if latent is None:
        last = run.card.d_sae - 1
        return _Shown(said, problem=f"There is no latent {number}; {there.name} has 0 to {last}.")
    if latent not in run.features.latents:
        return _Shown(said, problem=f"No features of it were collected in {there.name}.")
    return _Shown(said, run, latent)


def _column(one: _Shown, without: str) -> Html:
    assert one.run is not None, "it was found"
    card, record = one.run.card, one.run.features[one.latent]
    head = html(
        '<section class="card"><p class="spread"><a class="number" href="{h}">{latent}</a>'
        '<a href="{without}" aria-label="Take {latent} away">take away</a></p>'
        '<p class="lead name">{name}</p><p class="sub" title="{run}">{run}</p>{figures}</section>',
        h=link("latent", run=card.name, latent=one.latent), latent=one.latent, without=without,
        name=LatentNames.of(card).name(one.latent) or "no name", run=card.name,
        figures=_figures(one.run, record),
    )  # fmt: skip
    effects = EMPTY if card.has_forms else boxed("Logits", logit_effects(record))
    cards = [
        head,
        boxed("Activations", histogram(record)) if record.n_fired else EMPTY,
        effects,
        boxed("Top examples", _examples(one.run, record)) if record.n_fired else EMPTY,
    ]
    return html("<div>{cards}</div>", cards=joined(cards))


def _figures(run: OpenRun, record: LatentRecord) -> Html:
    if not record.n_fired:
        return html(
            '<p class="sub">Dead: it never fired on {n} tokens.</p>', n=count(record.n_tokens)
        )
    match = run.known.matches.get(record.latent)
    rows = [
        ("density", percent(record.density)),
        ("maximum", activation(record.max)),
        *([("F1", f"{real(match.f1)} {match.title}")] if match else []),
        *_steering(run, record.latent),
    ]
    return pairs(rows)


def _steering(run: OpenRun, latent: int) -> list[tuple[str, str]]:
    scores = readable_scores(run.card)
    if scores is None or latent not in scores.latent:
        return []
    try:
        row = scores.row(latent)
    except UsageError:
        return []
    return [("output score", real(float(scores.output[row]), 3))]


def _examples(run: OpenRun, record: LatentRecord) -> Html:
    found = [*record.examples.get("top", []), *record.examples.get("negative", [])]
    style = TextStyle(record.max, run.spaced, AROUND)
    return joined(
        html(
            '<p class="text" dir="auto">{t}</p>', t=example_text(example, style, run.features.file)
        )
        for example in found[:EXAMPLES]
    )


PAGE = Page(
    "Side by side",
    BesideAddress,
    beside_view,
    needs_features=True,
    asks="How do up to four latents differ?",
)
