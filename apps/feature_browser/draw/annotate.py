"""The label, note and bookmark of a latent: drawn, and saved when the reader edits them."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

from feature_browser.data.catalogue import RunCard
from feature_browser.data.labels import Labels
from feature_browser.draw.listing import listing
from feature_browser.draw.markup import EMPTY, Html, escaped, html, joined
from saelab.analysis.lists_file import Values, take_back
from saelab.analysis.notes import LONGEST, Edit, Notes
from saelab.config import UsageError

NOTED, PROBLEM, SHOWN = "noted", "note-problem", "note-shown"
IMPORT = "import"
"""The field of the edit that takes an import back."""
EARLIER = 8


@dataclass(frozen=True)
class Keeper:
    """Saves what the reader of a page writes into the run that the page was drawn of.

    Attributes:
        weights: the run's weights as they were then, see `identity`.
    """

    card: RunCard
    weights: tuple[int, int, int]

    @classmethod
    def of(cls, card: RunCard) -> "Keeper":
        """The keeper of a page that is drawn now."""
        return cls(card, identity(card.weights_path))

    def __call__(self, edits: object) -> None:
        """Save the edits that are not saved yet; `told` reports what fails, with the text.

        The page sends a list of {id, latent, field, value, was} with ascending ids; `was` is what
        stood there when the reader began, and `undone` that it takes an edit back. Entries of
        another form are ignored.
        """
        for edit in edits if isinstance(edits, list) else []:
            if not _whole(edit, self.card.d_sae) or edit["id"] <= noted():
                continue
            st.session_state[NOTED] = edit["id"]
            try:
                self._write(edit)
            except UsageError as error:
                say(f"{_what(edit)} was not saved. {error}", edit["value"])

    def _write(self, edit: dict[str, Any]) -> None:
        if edit["field"] == IMPORT:
            say(_taken_back(self.card.path))
            return
        now = identity(self.card.weights_path)
        if now != self.weights:
            fate = "is another run now" if any(now) else "is gone"
            raise UsageError(f"{self.card.path} {fate}; copy the text, and open the page again.")
        notes = Notes(self.card.path)
        other = notes.write(edit["latent"], edit["field"], edit["value"], edit.get("was"))
        if edit.get("undone"):
            say(f"{_what(edit)} was taken back.")
        elif other is not None:
            say(_overwritten(edit, other))


def identity(path: Path) -> tuple[int, int, int]:
    """Tells a file from another in its place: time, size and inode; zeros if there is none."""
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_size, found.st_ino)


def _what(edit: dict[str, Any]) -> str:
    if edit["field"] == IMPORT:
        return "What takes the import back"
    if edit["field"] == "list":
        return f"The entry of latent {edit['latent']} in {edit['value'].partition(chr(10))[0]}"
    return f"The {edit['field']} of latent {edit['latent']}"


def _overwritten(edit: dict[str, Any], other: str) -> str:
    if edit["field"] == "list":
        said = f"written “{other}”" if other else "taken it off"
        return f"{_what(edit)} is yours now; somebody else had {said} while you were at it."
    shown = other if len(other) <= LONGEST["label"] else f"{other[: LONGEST['label']]}…"
    theirs = f"had written “{shown}”" if other else "had removed it"
    return (
        f"Somebody else {theirs} as the {edit['field']} of latent {edit['latent']} while you were "
        "writing. Yours is shown now; theirs stands under Earlier, below the note."
    )


@dataclass(frozen=True)
class ListsImport:
    """An import of lists into a run, as it can be taken back; `number` tells it from others."""

    run: Path
    before: Values
    after: Values
    number: int


def keep_import(run: Path, before: Values, after: Values) -> None:
    """Let the reader take an import back: entries as they were before, and as they are now."""
    number = time.time_ns() // 10**6
    st.session_state[IMPORT] = ListsImport(run, before, after, number)


def last_import(run: Path) -> int:
    """The number of the import into the run that can be taken back; 0 if there is none."""
    kept = st.session_state.get(IMPORT)
    return kept.number if kept is not None and kept.run == run else 0


def _taken_back(run: Path) -> str:
    if not last_import(run):
        return "There is no import to be taken back."
    kept = st.session_state[IMPORT]
    stay = take_back(run, kept.before, kept.after)
    del st.session_state[IMPORT]
    said = f" {stay} of its entries were changed since, and stay." if stay else ""
    return f"The import of {len(kept.after)} entries was taken back.{said}"


def noted() -> int:
    """The last edit of this browser tab that was processed."""
    return st.session_state.get(NOTED, 0)


def say(sentence: str, text: str = "") -> None:
    """Have this or the next pass of the script report a sentence, and a text to be copied."""
    st.session_state[PROBLEM] = [*st.session_state.get(PROBLEM, []), (sentence, text)]


def told(address: str) -> Html:
    """What could not be saved and why, or what else is to `say`; it stays until the next address.

    A page may be drawn several times in a row, so once would be too short to be read.
    """
    if said := st.session_state.pop(PROBLEM, []):
        st.session_state[SHOWN] = (address, said)
    where, kept = st.session_state.get(SHOWN, ("", []))
    return joined(
        html(
            '<div class="notice" role="status">{sentence}{text}</div>',
            sentence=sentence,
            text=_rescued(text) if text else EMPTY,
        )
        for sentence, text in (kept if where == address else [])
    )


def _rescued(text: str) -> Html:
    return html(
        '<button class="copy" data-copy="{value}">Copy</button><pre><code>{text}</code></pre>',
        value=escaped(text),
        text=text,
    )


def _whole(edit: Any, d_sae: int) -> bool:  # noqa: ANN401 - any JSON value
    if not isinstance(edit, dict):
        return False
    latent = edit.get("latent")
    if not isinstance(latent, int) or not isinstance(edit.get("id"), int):
        return False
    texts = isinstance(edit.get("field"), str) and isinstance(edit.get("value"), str)
    texts = texts and isinstance(edit.get("was", ""), str | None)
    texts = texts and isinstance(edit.get("undone", False), bool)
    return texts and 0 <= latent < d_sae


def headline(card: RunCard, labels: Labels, latent: int) -> Html:
    """The latent's number with its star, and its label and note, editable in place."""
    writable = Notes(card.path).writable
    return html(
        '<div class="spread"><h1 aria-live="polite">{latent}</h1>{star}</div>{editor}{lists}',
        latent=latent,
        star=_star(labels, latent, writable=writable),
        editor=_problem(labels.problem) if labels.problem else _editor(card, labels, latent),
        lists=EMPTY if labels.problem else listing(card, latent, writable=writable),
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
        earlier=_earlier(Notes(card.path).history(latent), writable=writable),
    )  # fmt: skip


def _earlier(edits: list[Edit], *, writable: bool) -> Html:
    """Earlier labels and notes, the latest first; each can be made the current one again."""
    shown: list[Edit] = []
    for field in ("label", "note"):
        said = [edit for edit in edits if edit.field == field]
        shown += [edit for edit in said[:-1] if edit.value]
    if not shown:
        return EMPTY
    lines = joined(
        html(
            "<li>{at} · {field}: {v}{again}</li>", at=edit.at[:16].replace("T", " "),
            field=edit.field, v=edit.value, again=_again(edit) if writable else EMPTY,
        )
        for edit in sorted(shown, key=lambda edit: edit.at, reverse=True)[:EARLIER]
    )  # fmt: skip
    return html('<ul class="earlier" aria-label="Earlier">{lines}</ul>', lines=lines)


def _again(edit: Edit) -> Html:
    return html(
        ' <button class="plain" data-again="{field}" data-value="{v}">restore</button>',
        field=edit.field, v=escaped(edit.value),
    )  # fmt: skip
