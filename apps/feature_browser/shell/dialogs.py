"""The dialogs that keys open on every page: the palette, and the help."""

from feature_browser.data.elsewhere import NOWHERE, Elsewhere
from feature_browser.data.glossary import WORDS
from feature_browser.draw.markup import EMPTY, Html, escaped, html, joined

FIND_ROUTE = "/find"
"""Where the palette asks what a text may mean."""
KEYS = (
    ("Ctrl K or /", "find: a latent, page, run, label, list, explanation, or text"),
    ("[ and ]", "the same page of the previous and the next run"),
    ("?", "these keys and words"),
    ("J and K", "the next and the previous latent"),
    ("G", "go to a latent by its number"),
    ("X", "a random latent"),
    ("B", "bookmark the latent"),
    ("L and N", "write its label, its note"),
    ("A", "put it on a list, with a comment; in the palette “add NAME” does so"),
    ("Ctrl Z", "take the last label, note, bookmark or list's entry back"),
    ("E", "have the configured model explain the latent"),
    ("+ - 0 1", "zoom a circuit that has the focus; 0 fits it in"),
)


def dialogs(run: str | None, elsewhere: Elsewhere) -> Html:
    """The palette, the help and the page as code, closed; the palette searches `run` first."""
    keys = joined(
        html("<dt><kbd>{k}</kbd></dt><dd>{does}</dd>", k=k, does=does) for k, does in KEYS
    )
    words = joined(html("<dt>{w}</dt><dd>{means}</dd>", w=w, means=m) for w, m in WORDS.items())
    return html(
        '<dialog class="palette" aria-label="Find" data-run="{run}"><input role="combobox" '
        'aria-expanded="true" aria-controls="found" aria-autocomplete="list" aria-label="Find" '
        'placeholder="a number, a word, a page, a run" autocomplete="off" spellcheck="false">'
        '<ul id="found" role="listbox" aria-label="Found"></ul>'
        '<p class="sub">↑ ↓ choose · Enter goes there · Esc closes</p></dialog>'
        '<dialog class="help" aria-label="Keys and words"><form method="dialog">'
        '<button class="copy">Close</button></form><h2>Keys</h2><dl class="keys">{keys}</dl>'
        '<h2>Words</h2><dl class="words">{words}</dl></dialog>{code}',
        run=run or "", keys=keys, words=words, code=_code(elsewhere),
    )  # fmt: skip


def _code(elsewhere: Elsewhere) -> Html:
    if elsewhere == NOWHERE:
        return EMPTY
    ways = (("In the terminal", elsewhere.command), ("In Python", elsewhere.python))
    parts = joined(
        html(
            '<h2>{title}<button class="copy" data-copy="{value}">Copy</button></h2><pre><code>'
            "{text}</code></pre>",
            title=title, value=escaped(text), text=text,
        )
        for title, text in ways
        if text
    )  # fmt: skip
    return html(
        '<dialog class="code" aria-label="This page as code">{parts}<form method="dialog">'
        '<button class="copy">Close</button></form></dialog>',
        parts=parts,
    )
