"""One file of the site: its head, its bar, and the style and script that all files share."""

from collections.abc import Sequence
from pathlib import Path

from feature_browser.draw.markup import EMPTY, Html, escaped, html, joined

STATIC = Path(__file__).parents[1] / "static"
STYLE, SCRIPT = "saelab.css", "saelab.js"
# The site asks for nothing but its own files, whatever a token may hold.
POLICY = (
    "default-src 'none'; style-src 'self' file: 'unsafe-inline'; script-src 'self' file:; "
    "base-uri 'none'; form-action 'none'"
)
Links = Sequence[tuple[str, str]]
"""Titles and files."""


def document(title: str, body: Html, *, links: Links, here: str, root: str = "../") -> bytes:
    """A whole file.

    Args:
        title: of the window.
        body: the page, as the app draws it.
        links: the bar's.
        here: the one of these that is shown.
        root: the way to the style and the script.
    """
    bar = joined(
        html(
            '<a href="{file}"{on}>{name}</a>',
            file=escaped(file),
            name=name,
            on=Html(' aria-current="page"') if file == here else EMPTY,
        )
        for name, file in links
    )
    return html(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="referrer" content="no-referrer"><title>{title} · saelab</title>'
        '<link rel="stylesheet" href="{root}{style}"><script src="{root}{script}" defer></script>'
        '</head><body><div class="canvas"><nav class="top" aria-label="Pages">'
        '<b class="brand">saelab</b>{bar}<span class="chips"><button class="chip theme" hidden>'
        "light or dark</button></span></nav><main>{body}</main></div></body></html>\n",
        policy=Html(POLICY), title=title, root=Html(root), style=Html(STYLE), script=Html(SCRIPT),
        bar=bar, body=body,
    ).encode()  # fmt: skip


def shared_files() -> dict[str, bytes]:
    """The style and the script: the app's own, and what only the site needs."""
    styles = [*sorted(STATIC.glob("canvas*.css")), STATIC / "site.css"]
    scripts = [*sorted(STATIC.glob("canvas*.js")), STATIC / "site.js"]
    # A page on a disk may not load modules, so the app's is made an ordinary script.
    code = "\n".join(path.read_text() for path in scripts).replace(
        "export default ", "const app = "
    )
    return {
        STYLE: "\n".join(path.read_text() for path in styles).encode(),
        SCRIPT: f'"use strict";\n(() => {{\n{code}\n}})()\n'.encode(),
    }
