"""The label, note and bookmark of a latent: drawn, and saved when the reader edits them."""

from typing import Any

import streamlit as st

from feature_browser.data.catalogue import RunCard
from feature_browser.data.labels import Labels
from feature_browser.draw.markup import EMPTY, Html, escaped, html, joined
from saelab.analysis.notes import LONGEST, Edit, Notes
from saelab.config import UsageError

NOTED, PROBLEM = "noted", "note-problem"
EARLIER = 8


def keep(card: RunCard, d_sae: int, edits: object) -> None:
    """Save the reader's edits that are not saved yet; `problem` reports what fails.

    The page sends a list of {id, latent, field, value, was} with ascending ids; `was` is what stood
    there when the reader began. Entries of another form are ignored.
    """
    for edit in edits if isinstance(edits, list) else []:
        if not _whole(edit, d_sae) or edit["id"] <= noted():
            continue
        st.session_state[NOTED] = edit["id"]
        try:
            other = Notes(card.path).write(
                edit["latent"], edit["field"], edit["value"], edit.get("was")
            )
            if other is not None:
                st.session_state[PROBLEM] = _overwritten(edit, other)
        except UsageError as error:
            st.session_state[PROBLEM] = str(error)


def _overwritten(edit: dict[str, Any], other: str) -> str:
    shown = other if len(other) <= LONGEST["label"] else f"{other[: LONGEST['label']]}…"
    theirs = f"had written “{shown}”" if other else "had removed it"
    return (
        f"Somebody else {theirs} as the {edit['field']} of latent {edit['latent']} while you were "
        "writing. Yours is shown now; theirs stands under Earlier, below the note."
    )


def noted() -> int:
    """The last edit of this browser tab that was processed."""
    return st.session_state.get(NOTED, 0)


def say(sentence: str) -> None:
    """Have the next pass of the script report a sentence."""
    st.session_state[PROBLEM] = sentence


def problem() -> str:
    """Why the last edit could not be saved, or what else is to `say`; reported once."""
    return st.session_state.pop(PROBLEM, "")


def _whole(edit: Any, d_sae: int) -> bool:  # noqa: ANN401 - any JSON value
    if not isinstance(edit, dict):
        return False
    latent = edit.get("latent")
    if not isinstance(latent, int) or not isinstance(edit.get("id"), int):
        return False
    texts = isinstance(edit.get("field"), str) and isinstance(edit.get("value"), str)
    texts = texts and isinstance(edit.get("was", ""), str | None)
    return texts and 0 <= latent < d_sae


def headline(card: RunCard, labels: Labels, latent: int) -> Html:
    """The latent's number with its star, and its label and note, editable in place."""
    writable = Notes(card.path).writable
    return html(
        '<div class="spread"><h1 aria-live="polite">{latent}</h1>{star}</div>{editor}',
        latent=latent,
        star=_star(labels, latent, writable=writable),
        editor=_problem(labels.problem) if labels.problem else _editor(card, labels, latent),
    )


def _problem(text: str) -> Html:
    return html('<p class="notice">{t}</p>', t=text)


def _star(labels: Labels, latent: int, *, writable: bool) -> Html:
    return html(
        '<button class="bookmark" data-bookmark aria-pressed="{on}" aria-label="Bookmark latent '
        '{latent}" title="{title}"{off}></button>',
        on="true" if labels.of(latent).bookmark else "false",
        latent=latent,
        title="bookmark: B" if writable else "this run's directory is read-only",
        off=EMPTY if writable and not labels.problem else Html(" disabled"),
    )


def _editor(card: RunCard, labels: Labels, latent: int) -> Html:
    note, writable = labels.of(latent), Notes(card.path).writable
    if not writable and not (note.label or note.note):
        return html('<p class="sub">No label; the run\'s directory is read-only.</p>')
    fixed = EMPTY if writable else Html(" readonly")
    return html(
        '<input class="label" data-note="label" aria-label="Label of latent {latent}" '
        'dir="auto" '
        'value="{label}" placeholder="add a label: L" maxlength="{longest}" autocomplete="off"'
        '{fixed}><details class="note"{open}><summary>{title}</summary><textarea data-note="note" '
        'rows="3" dir="auto" aria-label="Note on latent {latent}" maxlength="{longest_note}"'
        '{fixed}>\n{note}</textarea>{earlier}</details>',
        latent=latent, label=escaped(note.label), note=escaped(note.note), fixed=fixed,
        longest=LONGEST["label"], longest_note=LONGEST["note"],
        open=Html(" open") if note.note else EMPTY,
        title="note" if note.note else "add a note: N",
        earlier=_earlier(Notes(card.path).history(latent)) if latent in labels.notes else EMPTY,
    )  # fmt: skip


def _earlier(edits: list[Edit]) -> Html:
    """Earlier labels and notes, the latest first."""
    shown: list[Edit] = []
    for field in ("label", "note"):
        said = [edit for edit in edits if edit.field == field]
        shown += [edit for edit in said[:-1] if edit.value]
    if not shown:
        return EMPTY
    lines = joined(
        html("<li>{at} · {field}: {v}</li>", at=edit.at[:16].replace("T", " "), field=edit.field,
             v=edit.value)
        for edit in sorted(shown, key=lambda edit: edit.at, reverse=True)[:EARLIER]
    )  # fmt: skip
    return html('<ul class="earlier" aria-label="Earlier">{lines}</ul>', lines=lines)
