"""The app's script, served by `asgi`: it reads the address and draws one page."""

import logging
from pathlib import Path

import streamlit as st

from feature_browser.data.address import HOME, AbstractAddress
from feature_browser.data.catalogue import OWN_ARRAYS, Catalogue, RunCard
from feature_browser.data.elsewhere import NOWHERE
from feature_browser.data.reading import list_runs
from feature_browser.draw.annotate import told
from feature_browser.draw.boxes import alone, message
from feature_browser.draw.markup import Html
from feature_browser.live.model import told_of
from feature_browser.live.warm import WARMTH
from feature_browser.pages import Page, pages
from feature_browser.shell.canvas import go_to, show, style_page
from feature_browser.shell.chrome import Bar, top_bar
from feature_browser.shell.launch import runs_directory
from saelab.config import UsageError

_LOG = logging.getLogger(__name__)
WELCOME = "welcome"  # what an address without anything shows
TRAINING = "training"  # what is shown of a run in training
LIST = "runs"  # shown where there is no run to show; a string here would be printed


def main(root: Path) -> None:
    """Draw the page of the address."""
    st.set_page_config(page_title="saelab", page_icon="◔", layout="wide")
    style_page()
    params, known = st.query_params.to_dict(), pages()
    page = known.get(params.get("view", HOME) if params else WELCOME, known[HOME])
    address = page.address.of(params)
    catalogue = list_runs(root)
    card = _chosen(catalogue, address)
    if card and address.run is None and page.address.view != LIST:
        address = address.to(run=card.name)
        go_to(address)
    model = told_of(card) if card and card.model != OWN_ARRAYS else None
    elsewhere = NOWHERE if card is None or _lacks(page, card) else page.elsewhere(card, address)
    bar = Bar(
        _titles(known, page, card), [*catalogue.runs, *catalogue.growing], card, model, elsewhere
    )
    show(top_bar(bar, address), "top-bar")
    if not WARMTH.imported.is_set():
        with st.spinner("The server has just started …"):
            WARMTH.imported.wait()
    if card is None and not (page.unfinished and address.run in catalogue.growing):
        page = known[TRAINING if address.run in catalogue.growing else LIST]
        address = page.address.of(params)
    told_here = st.container(key="told")
    _draw(page, catalogue, card, address)
    if said := told(address.href):
        with told_here:
            show(alone(said), "told-notice")


def _titles(known: dict[str, Page], page: Page, card: RunCard | None) -> dict[str, tuple[str, str]]:
    """The pages that concern the run, and the one that is shown: titles and questions."""
    return {
        name: (one.title, one.asks)
        for name, one in known.items()
        if one is page or card is None or one.concerns(card)
    }


def _chosen(catalogue: Catalogue, address: AbstractAddress) -> RunCard | None:
    """The run that the address names; without a name, the one that is shown first."""
    if address.run is None:
        return catalogue.first
    return catalogue.runs.get(address.run)


def _draw(page: Page, catalogue: Catalogue, card: RunCard | None, address: AbstractAddress) -> None:
    if card and _lacks(page, card):
        show(_no_features(card), "no-features")
        return
    try:
        if card and page.needs_decoder:
            card.check_decoder()
        page.draw(catalogue, card, address)
    except UsageError as error:
        show(alone(message("This cannot be shown", str(error))), "problem")
    except (LookupError, ValueError, TypeError, ArithmeticError) as error:
        if card is None:
            raise
        # Files that are valid alone may still contradict each other.
        _LOG.exception("The page %s of %s failed.", page.address.view, card.path)
        show(alone(_contradiction(card, error)), "problem")


def _lacks(page: Page, card: RunCard) -> bool:
    """Whether the page needs features that the run does not have."""
    return page.needs_features and not card.evidence_path.is_file()


def _contradiction(card: RunCard, error: Exception) -> Html:
    reason = (str(error).splitlines() or [""])[0][:200]
    return message(
        "This cannot be shown",
        f"The files of {card.name} do not fit each other ({type(error).__name__}: {reason}). What "
        "is wrong with them says",
        command=f"saelab verify {card.path.as_posix()}",
    )


def _no_features(card: RunCard) -> Html:
    return alone(
        message(
            "No features yet",
            f"{card.name} was trained, but what its latents fire on was not collected.",
            command=f"saelab features {card.path.as_posix()}",
        )
    )


main(runs_directory())
