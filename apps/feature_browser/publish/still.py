"""The app's HTML made still: links lead to files, and what would change something is gone.

All of it was escaped when it was made, so no attribute and no text holds a <, > or quotation mark.
"""

import re
from collections.abc import Callable
from html import unescape

from feature_browser.data.address import HOME, parsed
from feature_browser.draw.markup import Html

FileOf = Callable[[dict[str, str]], str]
"""The file of a page of the app, by its parameters and its `view`; empty if it was not written."""
SHOWN = ("latent", "circuit", "health", "scoreboard", "runs")
"""Views whose links say something even where they lead nowhere; links to others ask for actions."""

_BUTTON = re.compile(r"<button\b(?![^>]* data-(?:export|zoom)=)[^>]*>.*?</button>", re.DOTALL)
_FIELD = re.compile(r"<input\b[^>]*>")
_VALUE = re.compile(r' value="([^"]*)"')
_NOTE = re.compile(
    r'<details class="note"[^>]*><summary>[^<]*</summary><textarea\b[^>]*>\n?([^<]*)</textarea>'
    r"(?:<ul\b.*?</ul>)?</details>",
    re.DOTALL,
)
_LISTING = re.compile(r'<details class="note listing">.*?</details>', re.DOTALL)
_LINK = re.compile(r'(?:<br>)?(<a\b[^>]*?) href="(\?[^"]*)"([^>]*>)(.*?)</a>', re.DOTALL)
_LEFT_OVER = re.compile(r'<p class="(?:sub|leads)">[\s·]*</p>')


def still(content: Html, file_of: FileOf) -> Html:
    """`content` without fields, and of buttons only those that zoom or save; links lead to files.

    A link to a latent or a graph that was not written is plain text, one to a page where the reader
    does something is gone. Of fields their text stays.
    """
    text = _BUTTON.sub("", _LISTING.sub("", content))
    text = _NOTE.sub(lambda note: _said("sub", note[1]), text)
    text = _FIELD.sub(lambda field: _said("label", _value(field[0])), text)
    return Html(_LEFT_OVER.sub("", _LINK.sub(lambda link: _linked(link, file_of), text)))


def _value(field: str) -> str:
    found = _VALUE.search(field)
    return found[1] if found else ""


def _said(kind: str, escaped_text: str) -> str:
    if not escaped_text.strip():
        return ""
    return f'<p class="{kind}" dir="auto">{escaped_text}</p>'


def _linked(link: re.Match[str], file_of: FileOf) -> str:
    start, href, end, text = link.groups()
    params = {"view": HOME, **parsed(unescape(href))}
    if file := file_of(params):
        return f'{start} href="{file}"{end}{text}</a>'
    asks = params["view"] not in SHOWN or params.get("part")
    return "" if asks else f"{start}{end}{text}</a>"
