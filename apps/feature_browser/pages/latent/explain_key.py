"""One key that has a language model explain the latent on the screen, if one is configured."""

import streamlit as st

from feature_browser.data.catalogue import RunCard
from feature_browser.draw import annotate
from saelab.analysis.notes import Notes
from saelab.clients.question import Client
from saelab.config import UsageError
from saelab.training.run import Run


def explain_button(card: RunCard) -> bool:
    """Draw the button if a model is configured and the run is writable; whether it is pressed."""
    from saelab.clients.choose import configured

    found = configured()
    if found is None or not Notes(card.path).writable:
        return False
    return st.button(
        "Explain",
        shortcut="e",
        key="explain",
        help=f"One question about this latent to {found[0]}",
    )


def explain(card: RunCard, latent: int) -> None:
    """Ask the configured model about a latent, and say what came."""
    from saelab.analysis.explain.explain import explain_latent
    from saelab.clients.choose import configured

    found = configured()
    if found is None:
        return
    with st.spinner(f"Asking {found[0]} about latent {latent} …"):
        try:
            annotate.say(explain_latent(Run(card.path), latent, _client(*found)))
        except UsageError as error:
            annotate.say(str(error))


@st.cache_resource(max_entries=1, show_spinner=False)
def _client(model: str, base_url: str | None, key_name: str) -> Client:
    """The client, kept: a local checkpoint takes seconds to load."""
    from saelab.clients.choose import client_of

    return client_of(model, base_url=base_url, key_name=key_name)
