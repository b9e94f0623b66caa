"""What a latent means, by whom: explanations that the reader accepts, rejects or edits."""

from feature_browser.data.explained import Told
from feature_browser.draw.boxes import boxed
from feature_browser.draw.markup import EMPTY, Html, escaped, html, joined
from feature_browser.pages.latent.cards import LatentScene
from saelab.analysis.notes import Note, Notes

TITLES = {"input": "What makes it fire", "output": "What it does to the text"}
VERDICTS = (("+", "accept", "accepted"), ("-", "reject", "rejected"))


def meaning(scene: LatentScene) -> Html:
    """A card for each side that is explained; what examples share stands in the first."""
    latent = scene.record.latent
    told = scene.names.explained.by_latent.get(latent, [])
    fires = scene.names.fires_on(latent)
    after = []
    if problem := scene.names.explained.problem:
        after.append(html('<p class="sub">{t}</p>', t=problem))
    if fires and fires not in {one.text for one in told}:
        after.append(html('<p class="sub fires-on">{t}</p>', t=fires))
    sides = {side: [one for one in told if one.side == side] for side in TITLES}
    return joined(
        _card(scene, TITLES[side], found, after if side == "input" else [])
        for side, found in sides.items()
    )


def _card(scene: LatentScene, title: str, told: list[Told], after: list[Html]) -> Html:
    note = scene.names.labels.of(scene.record.latent)
    fixed = bool(scene.names.labels.problem) or not Notes(scene.run.card.path).writable
    rows = [_row(one, note, fixed=fixed) for one in told] + after
    hint = "0.5 is chance" if any(one.score is not None for one in told) else ""
    return boxed(title, joined(rows), hint=hint) if rows else EMPTY


def _row(told: Told, note: Note, *, fixed: bool) -> Html:
    """An explanation: accepted ones are bold, rejected ones struck out."""
    accepted, rejected = (told.mark in marks for marks in (note.accepted, note.rejected))
    return html(
        '<div class="told{state}"><p>{text}</p><p class="sub">{source} · {verdict}</p>{buttons}'
        "</div>",
        state=" accepted" if accepted else " rejected" if rejected else "",
        text=told.text,
        source=told.source,
        verdict=told.verdict,
        buttons=EMPTY if fixed else _buttons(told, {"+": accepted, "-": rejected}),
    )


def _buttons(told: Told, on: dict[str, bool]) -> Html:
    verdicts = joined(
        html(
            '<button class="plain" data-verdict="{value}" aria-pressed="{pressed}">{name}</button>',
            # Pressed again, it takes the verdict back.
            value=Html(f"{'0' if on[sign] else sign}{told.mark}"),
            pressed=Html("true" if on[sign] else "false"),
            name=done if on[sign] else verb,
        )
        for sign, verb, done in VERDICTS
    )
    edit = html(
        '<button class="plain" data-propose="{text}" title="as the label, to be changed">edit'
        "</button>",
        text=escaped(told.text),
    )
    return html('<p class="verdicts">{verdicts}{edit}</p>', verdicts=verdicts, edit=edit)
