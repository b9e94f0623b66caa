"""The app's script, which `asgi` serves. It reads the address and draws one view."""

import logging
from pathlib import Path

import streamlit as st

from feature_browser.data.catalogue import Catalogue, RunCard
from feature_browser.data.reading import list_runs, open_run
from feature_browser.draw.markup import Html
from feature_browser.pages.attention.view import attention_view
from feature_browser.pages.circuit.view import circuit_view
from feature_browser.pages.compare.view import compare_view
from feature_browser.pages.health.view import health_view
from feature_browser.pages.known import known_view
from feature_browser.pages.latent.view import latent_view
from feature_browser.pages.latents.view import latents_view
from feature_browser.pages.runs import no_such_run, runs_view
from feature_browser.pages.steering.view import steering_view
from feature_browser.pages.training import training_view
from feature_browser.pages.try_it.view import try_view
from feature_browser.shell.canvas import go_to, here, show, style_page
from feature_browser.shell.chrome import alone, message, top_bar
from feature_browser.shell.launch import runs_directory
from feature_browser.shell.place import Place
from saelab.config import UsageError

_LOG = logging.getLogger(__name__)
# Views of a run that need no features.h5, or say themselves what they lack. (Streamlit would print
# a string here.)
WITHOUT_FEATURES = {
    "known": known_view,
    "health": health_view,
    "steering": steering_view,
    "try": try_view,
    "training": training_view,
}
# Views that show other runs beside the chosen one.
OF_SEVERAL_RUNS = {
    "compare": compare_view,
    "attention": attention_view,
    "circuit": circuit_view,
}


def main(root: Path) -> None:
    """Draw the view that the address asks for."""
    st.set_page_config(page_title="saelab", page_icon="◔", layout="wide")
    style_page()
    place = here()
    catalogue = list_runs(root)
    card = _chosen(catalogue, place)
    if card and place.run is None and place.view != "runs":
        place = place.to(run=card.name)
        go_to(place)
    show(top_bar(place, card), "top-bar")
    if card is None and (catalogue.runs or catalogue.damaged) and place.run is not None:
        runs_view(catalogue, place, notice=no_such_run(catalogue, place.run))
    elif card is None or place.view == "runs":
        runs_view(catalogue, place)
    else:
        _view_of_run(catalogue, card, place)


def _chosen(catalogue: Catalogue, place: Place) -> RunCard | None:
    """The run the address names; without a name, the first that has features."""
    if place.run is None:
        ranked = sorted(catalogue.runs.values(), key=lambda run: not run.features_path.is_file())
        return ranked[0] if ranked else None
    return catalogue.runs.get(place.run)


def _view_of_run(catalogue: Catalogue, card: RunCard, place: Place) -> None:
    try:
        if place.view in OF_SEVERAL_RUNS:
            OF_SEVERAL_RUNS[place.view](catalogue, card, place)
        elif place.view in WITHOUT_FEATURES:
            WITHOUT_FEATURES[place.view](card, place)
        elif not card.features_path.is_file():
            show(_no_features(card), "no-features")
        elif place.view == "latents":
            latents_view(open_run(card), place)
        else:
            latent_view(open_run(card), place)
    except UsageError as error:
        show(alone(message("This cannot be shown", str(error))), "problem")
    except (LookupError, ValueError, TypeError, ArithmeticError) as error:
        # Files that are whole each by itself may still contradict each other.
        _LOG.exception("The view %s of %s failed.", place.view, card.path)
        show(alone(_contradiction(card, error)), "problem")


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
