"""Which latents tell one's own texts from others: fifty of these from fifty of those."""

from dataclasses import dataclass

import numpy as np
import streamlit as st

from feature_browser.data.address import AbstractAddress, page_number
from feature_browser.data.catalogue import OWN_ARRAYS, Catalogue, RunCard
from feature_browser.data.labels import LatentNames
from feature_browser.data.reading import stamp
from feature_browser.draw.boxes import alone, message
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.names import named
from feature_browser.draw.numbers import activation, count, real
from feature_browser.draw.tables import Column, anchor, cell, metered, page_of, part, table
from feature_browser.live.model import live_run
from feature_browser.live.texts import fired_in
from feature_browser.pages import Page
from feature_browser.shell.canvas import show
from saelab.analysis.contrast import Contrast, check_sides, contrast
from saelab.config import UsageError

ROWS, MOST = 40, 500
SIDES = ("These texts, one a line", "Those texts, one a line")
KEYS = ("tell-these", "tell-those")
TEXTS = "tell-texts"
Texts = tuple[tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class TellAddress(AbstractAddress):
    """The texts are too long for an address: they stay in the browser's tab."""

    view = "tell"
    page: str = page_number()


def tell_view(_: Catalogue, card: RunCard, address: TellAddress) -> None:
    """Draw the form, and the latents that tell its texts apart."""
    if card.model == OWN_ARRAYS:
        text = f"{card.name} was trained on arrays, not on a language model: it reads no texts."
        show(alone(message("There is no model that could read texts", text)), "tell")
        return
    _form()
    texts: Texts | None = st.session_state.get(TEXTS)
    if texts is None:
        text = (
            "Paste some texts of one kind, and some of another: of two styles, languages, topics, "
            "or right and wrong answers. Each latent is judged by how strongly it fires in each."
        )
        show(alone(message("Which latents tell them apart?", text)), "tell")
        return
    try:
        found = _told(card, str(card.path), stamp(card.weights_path), texts)
    except UsageError as error:
        show(alone(message("They cannot be told apart", str(error))), "tell")
        return
    show(alone(_found(card, address, found, texts)), "tell")


def _form() -> None:
    kept: Texts = st.session_state.get(TEXTS) or ((), ())
    with st.container(key="controls"), st.form("tell-form", border=False):
        columns = st.columns(2)
        for column, label, key, lines in zip(columns, SIDES, KEYS, kept, strict=True):
            if key not in st.session_state:
                st.session_state[key] = "\n".join(lines)
            column.text_area(label, key=key, height=140)
        st.form_submit_button("Tell them apart", type="primary", on_click=_submitted)


def _submitted() -> None:
    sides = [
        tuple(line.strip() for line in st.session_state[key].splitlines() if line.strip())
        for key in KEYS
    ]
    st.session_state[TEXTS] = (sides[0], sides[1])


@st.cache_resource(max_entries=16, show_spinner=False)
def _told(_card: RunCard, path: str, weights: int, texts: Texts) -> Contrast:
    del path, weights  # part of the cache's key only
    every = [*texts[0], *texts[1]]
    if len(every) > MOST:
        raise UsageError(f"Got {len(every)} texts; give at most {MOST} in all.")
    check_sides(*map(len, texts))
    live, found = live_run(_card), []
    bar = st.progress(0.0, text="Reading the texts …")
    for number, text in enumerate(every, 1):
        try:
            found.append(fired_in(live, text))
        except UsageError as error:
            raise UsageError(f"Text {number}, “{text[:40]}”: {error}") from error
        bar.progress(number / len(every), text=f"Read {number} of {len(every)} texts")
    bar.empty()
    return contrast(found, np.arange(len(every)) < len(texts[0]))


def _found(card: RunCard, address: TellAddress, found: Contrast, texts: Texts) -> Html:
    beyond = int((np.abs(found.auroc - 0.5) > found.chance).sum())
    part, links = page_of(address, len(found), ROWS)
    names = LatentNames.of(card)
    columns = [
        Column("Latent"),
        Column("Name"),
        Column("AUROC", "1: stronger in all of these; 0: in all of those; 0.5: no difference"),
        Column("Mean in these", "of its largest activation in each text", numeric=True),
        Column("Mean in those", "of its largest activation in each text", numeric=True),
        Column("Fires in these", f"of {len(texts[0])} texts", numeric=True),
        Column("Fires in those", f"of {len(texts[1])} texts", numeric=True),
    ]
    rows = (_row(address, names, found, row) for row in range(len(found))[part])
    said = (
        f"Of {count(len(found))} latents that fire in some text. If the texts were shuffled, the "
        f"best would lie {real(found.chance)} from 0.5 or less in 19 of 20 cases."
    )
    return html(
        '<h1 class="headline">{n} tell them apart better than chance</h1><p class="sub">{said}</p>'
        "{table}{links}",
        n=f"{count(beyond)} latent{'s' * (beyond != 1)}",
        said=said,
        table=table(columns, rows, "Latents that tell the texts apart") if len(found) else EMPTY,
        links=links,
    )


def _row(address: TellAddress, names: LatentNames, found: Contrast, row: int) -> list[Html]:
    latent, auroc = int(found.latent[row]), float(found.auroc[row])
    sure = abs(auroc - 0.5) > found.chance
    return [
        anchor(address.visit("latent", latent=latent), latent),
        named(names.best(latent)),
        joined(
            [
                metered(real(auroc), auroc),
                EMPTY
                if sure
                else html(' <span class="sub">{c}</span>', c=part("yes", "is chance", "chance")),
            ]
        ),
        cell(activation(float(found.first[row]))),
        cell(activation(float(found.second[row]))),
        cell(count(int(found.n_first[row]))),
        cell(count(int(found.n_second[row]))),
    ]


PAGE = Page("Tell apart", TellAddress, tell_view, asks="Which latents tell these texts from those?")
