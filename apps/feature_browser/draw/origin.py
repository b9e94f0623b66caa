"""The box that says where an imported SAE came from."""

from feature_browser.data.origin import Origin
from feature_browser.draw.boxes import boxed
from feature_browser.draw.markup import Html, html, joined

FIGURES = {"fvu": "FVU", "l0": "L0", "ce": "CE recovered"}


def origin_box(origin: Origin) -> Html:
    """Source, licence, paper, stated figures and notes."""
    rows = [("from", origin.source), ("licence", origin.licence), ("paper", origin.paper)]
    rows += [(f"stated {FIGURES.get(n, n)}", _span(a, b)) for n, a, b in origin.stated]
    rows += [("note", note) for note in origin.notes]
    said = joined(
        html("<dt>{name}</dt><dd>{text}</dd>", name=name, text=text) for name, text in rows if text
    )
    return boxed("Imported", html('<dl class="answers">{said}</dl>', said=said))


def _span(least: float, most: float) -> str:
    return f"{least:.3g}" if least == most else f"{least:.3g} to {most:.3g}"
