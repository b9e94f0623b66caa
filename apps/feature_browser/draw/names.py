"""Names of latents with their sources: only what is sure looks so."""

from feature_browser.data.labels import Name
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.numbers import UNKNOWN, Number
from feature_browser.draw.tables import part, unseen


def named(name: Name) -> Html:
    """A name, and who says so: bold only if it is sure, grey if examples share it alone."""
    told = html(' <span class="sub">({t})</span>', t=_told(name)) if name.told else EMPTY
    if not name.sure:
        return joined([html('<span class="sub">{t}</span>', t=name.guess or UNKNOWN), told])
    return html('<span class="name">{t}</span>{told}', t=name.text, told=told)


def without_middle(text: str, longest: int) -> str:
    """A name of at most `longest` characters; the layers of one set, or runs, differ at the end."""
    kept = longest // 2
    return text if len(text) <= longest else f"{text[: longest - kept - 1]}…{text[-kept:]}"


def _told(name: Name) -> Html:
    """Saved as who tells it and, apart, how well it fits."""
    if name.score is None:
        return part(name.told, "told by")
    who = part(name.told.rpartition(" ")[0], "told by", name.told)
    return joined([who, unseen(Number.of(name.score, ""), "score")])
