"""A welcome to the run: what it is, latents worth a look, and what each page answers."""

from collections.abc import Mapping
from dataclasses import dataclass

from feature_browser.data.address import AbstractAddress
from feature_browser.data.catalogue import OWN_ARRAYS, Catalogue, RunCard
from feature_browser.data.labels import LatentNames
from feature_browser.data.reading import OpenRun, open_run, readable_scores
from feature_browser.draw.boxes import boxed, message
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.numbers import count, percent, real, short_count
from feature_browser.draw.origin import origin_box
from feature_browser.draw.tokens import TextStyle, example_text
from feature_browser.pages import Page, pages
from feature_browser.pages.welcome.interest import Worth, worth_a_look
from feature_browser.shell.canvas import show
from saelab.analysis.records import Example

AROUND = 8
EXAMPLES = 2


@dataclass(frozen=True, kw_only=True)
class WelcomeAddress(AbstractAddress):
    """The page has no parameters of its own."""

    view = "welcome"


def welcome_view(_: Catalogue, card: RunCard, address: WelcomeAddress) -> None:
    """Draw the welcome."""
    found = _latents(card, address) if card.evidence_path.is_file() else _none(card)
    content = html(
        '<div class="page wide welcome"><h1 class="headline">{name}</h1>{about}{origin}{found}'
        "{pages}</div>",
        name=card.name,
        about=_about(card),
        origin=EMPTY if card.origin is None else origin_box(card.origin),
        found=found,
        pages=boxed("What the pages answer", _answers(card, address, pages())),
    )
    show(content, "welcome")


def _about(card: RunCard) -> Html:
    """What the run is and what a latent is."""
    origin = f"trained on {short_count(card.n_tokens)} tokens" if card.n_tokens else "imported"
    what = "your own arrays" if card.model == OWN_ARRAYS else f"{card.model}'s activations"
    on = f", some {real(card.l0, 0)} at a time" if card.l0 else ""
    target = card.config.get("target_site")
    lost = f" It loses {percent(card.fvu)} of their variance." if card.fvu is not None else ""
    return html(
        "<p>This {variant} {kind}, {origin}, {does} as sums of few of "
        "<b>{n} latents</b>{on}.{lost} A latent is one learned direction; it is on where the text "
        'shows what it stands for. What that is, its examples tell, and you may write it down '
        "(<kbd>L</kbd>). <kbd>?</kbd> explains words and keys.</p>",
        variant=card.variant, origin=origin, n=count(card.d_sae), on=on, lost=lost,
        kind="SAE" if target is None else "transcoder",
        does=html("rewrites {what} at <b>{site}</b>", what=what, site=card.site)
        if target is None
        else html("reads {what} at <b>{site}</b> and writes those at <b>{target}</b>",
                  what=what, site=card.site, target=target),
    )  # fmt: skip


def _none(card: RunCard) -> Html:
    return message(
        "No features yet",
        "What its latents fire on was not collected, so none can be shown.",
        command=f"saelab features {card.path.as_posix()}",
    )


def _latents(card: RunCard, address: WelcomeAddress) -> Html:
    run, names = open_run(card), LatentNames.of(card)
    found = (
        [Worth(latent, "Its features were asked for.") for latent in run.features.latents[:5]]
        if card.of_chosen
        else worth_a_look(run, names, readable_scores(card))
    )
    if not found:
        return EMPTY
    cards = joined(_latent(run, names, one, address) for one in found)
    return html(
        '<h2>Latents worth a look</h2><div class="welcome-latents">{cards}</div>', cards=cards
    )


def _latent(run: OpenRun, names: LatentNames, one: Worth, address: WelcomeAddress) -> Html:
    record = run.features[one.latent]
    examples = [*record.examples.get("top", []), *record.examples.get("negative", [])]
    style = TextStyle(record.max, run.spaced, AROUND)
    return html(
        '<section class="card"><h2><a href="{href}">{latent}</a> {name}</h2><p class="why">{why}'
        "</p>{texts}</section>",
        href=address.visit("latent", latent=one.latent),
        latent=one.latent,
        name=names.name(one.latent),
        why=one.why,
        texts=joined(_text(run, example, style) for example in examples[:EXAMPLES]),
    )


def _text(run: OpenRun, example: Example, style: TextStyle) -> Html:
    text = example_text(example, style, run.features.file)
    return html('<p class="text" dir="auto">{text}</p>', text=text)


def _answers(card: RunCard, address: WelcomeAddress, known: Mapping[str, Page]) -> Html:
    rows = joined(
        html(
            '<dt><a href="{h}">{title}</a></dt><dd>{asks}</dd>',
            h=address.visit(view), title=page.title, asks=page.asks,
        )
        for view, page in known.items()
        if page.address is not WelcomeAddress and page.concerns(card)
    )  # fmt: skip
    return html('<dl class="answers">{rows}</dl>', rows=rows)


PAGE = Page("Welcome", WelcomeAddress, welcome_view, asks="What is this run, and where to begin?")
