"""Names of latents to a file, and from one."""

from functools import partial

import streamlit as st

from feature_browser.data.catalogue import RunCard
from feature_browser.draw import annotate
from saelab.analysis.names_file import FORMS, import_names, names_of, parsed_names, written_names
from saelab.analysis.notes import Notes
from saelab.config import UsageError
from saelab.lock import writing
from saelab.training.run import Run

FILE = "names-file"


def exchange(card: RunCard) -> None:
    """Draw what opens with the buttons that write a file, and the field that takes one."""
    with st.popover("Names …", key="names", help="Labels, notes and explanations as a file"):
        for form in FORMS:
            st.download_button(
                f"Export as {form.upper()}",
                partial(_exported, card, form),
                file_name=f"{card.own_name}-names.{form}",
                on_click="ignore",
                key=f"names-{form}",
            )
        st.file_uploader(
            "Import labels, notes, explanations, verdicts; earlier labels are kept",
            type=list(FORMS),
            key=FILE,
            on_change=_taken,
            args=(card,),
            disabled=not Notes(card.path).writable,
        )


def _exported(card: RunCard, form: str) -> bytes:
    return written_names(names_of(card.path), form)


def _taken(card: RunCard) -> None:
    file = st.session_state[FILE]
    if file is None:
        return
    try:
        rows = parsed_names(file.getvalue(), file.name.rpartition(".")[2].lower(), file.name)
        with writing(card.path):
            annotate.say(
                f"{import_names(Run(card.path), rows)}. Ctrl Z does not take this back; what was "
                "there before stands under Earlier on a latent's page."
            )
    except UsageError as error:
        annotate.say(str(error))
