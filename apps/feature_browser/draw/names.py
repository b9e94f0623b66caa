"""Names of latents with their sources: only what is sure looks so."""

from feature_browser.data.labels import Name
from feature_browser.draw.markup import EMPTY, Html, html
from feature_browser.draw.numbers import UNKNOWN


def named(name: Name) -> Html:
    """A name, and who says so: bold only if it is sure, grey if examples share it alone."""
    if not name.sure:
        return html('<span class="sub">{t}</span>', t=str(name) or UNKNOWN)
    told = html(' <span class="sub">({t})</span>', t=name.told) if name.told else EMPTY
    return html('<span class="name">{t}</span>{told}', t=name.text, told=told)
