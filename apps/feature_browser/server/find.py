"""What a text typed into the palette may mean: pages, runs, latents by number, name or token."""

from collections.abc import Iterator
from itertools import islice
from typing import TypedDict

from starlette.requests import Request
from starlette.responses import JSONResponse

from feature_browser.data.address import link
from feature_browser.data.catalogue import Catalogue, RunCard, latent_number
from feature_browser.data.explained import explained
from feature_browser.data.labels import labels_of, lists_of
from feature_browser.data.reading import list_runs, readable_known
from feature_browser.pages import pages
from feature_browser.shell.launch import runs_directory
from saelab.analysis.lists import LONGEST_NAME

MOST, OF_EACH = 24, 8
ADD = "add "
"""A text that begins so names a list for the latent in hand."""
LONGEST = 200
"""Characters of a text that are looked for."""


class Hit(TypedDict):
    """One thing that was found: what it is, its name, something about it, and where it is.

    `put` is the list that it puts the latent in hand on; empty if it only leads somewhere.
    """

    kind: str
    title: str
    about: str
    href: str
    put: str


def find(request: Request) -> JSONResponse:
    """What the text `q` of the query string may mean, beginning with the run `run`."""
    asked = request.query_params
    catalogue = list_runs(runs_directory())
    here = catalogue.runs.get(asked.get("run", ""))
    in_hand = latent_number(asked.get("latent"), here.d_sae) if here else None
    return JSONResponse(hits(catalogue, here, asked.get("q", "")[:LONGEST], in_hand))


def hits(
    catalogue: Catalogue, here: RunCard | None, text: str, in_hand: int | None = None
) -> list[Hit]:
    """What a text may mean, the likeliest first; without a text, pages and runs.

    The latent `in_hand` can be put on a list.
    """
    wanted = " ".join(text.lower().split())
    others = [card for card in catalogue.runs.values() if card is not here]
    found = [
        *_number(here, wanted),
        *(islice(_lists(here, text, in_hand), OF_EACH) if here else ()),
        *islice(_pages(here, wanted), OF_EACH if wanted else MOST),
        *islice(_runs(others, wanted), OF_EACH),
    ]
    if wanted:
        for card in [here, *others]:
            if card is not None and len(found) < MOST:
                found += islice(_latents(card, wanted), OF_EACH)
        found += _everywhere(here, text)
    return found[: MOST + 1]


def _number(here: RunCard | None, wanted: str) -> Iterator[Hit]:
    number = latent_number(wanted, here.d_sae) if here else None
    if here and number is not None:
        yield _hit("latent", str(number), here.name, link("latent", run=here.name, latent=number))


def _lists(here: RunCard, text: str, in_hand: int | None) -> Iterator[Hit]:
    """The lists of the run, and the ways to put the latent in hand on one."""
    asks, name = text.lower().startswith(ADD), text.strip()
    name = " ".join(name[len(ADD) :].split()) if asks else name
    lists = lists_of(here)
    found = [one for one in lists if name.lower() in one.lower()] if name or asks else []
    if asks and in_hand is not None:
        new = [name] if name and len(name) <= LONGEST_NAME and name not in lists else []
        for one in [*found, *new]:
            about = "a new list" if one in new else f"a list of {len(lists[one])}"
            yield _hit("add", f"{in_hand} to {one}", about, put=one)
    for one in found:
        there = link("lists", run=here.name, list=one)
        n = len(lists[one])
        yield _hit("list", one, f"{n} latent{'s' * (n != 1)}", there)


def _pages(here: RunCard | None, wanted: str) -> Iterator[Hit]:
    for view, page in pages().items():
        words = f"{page.title} {page.asks}" if wanted else ""
        if wanted in words.lower() and (here is None or page.concerns(here)):
            yield _hit(
                "page", page.title, page.asks, link(view, run=None if here is None else here.name)
            )


def _runs(cards: list[RunCard], wanted: str) -> Iterator[Hit]:
    for card in cards:
        about = f"{card.variant} · {card.model} · {card.site}"
        if not wanted or wanted in f"{card.name} {about}".lower():
            yield _hit("run", card.name, about, link("welcome", run=card.name))


def _latents(card: RunCard, wanted: str) -> Iterator[Hit]:
    """Latents by label or note, known feature, and explanation; each once."""
    told: dict[int, str] = {}
    for latent, note in labels_of(card).notes.items():
        if wanted in note.label.lower() or wanted in note.note.lower():
            told.setdefault(latent, note.label or note.note)
    matches = readable_known(card).matches.items()
    for latent, match in sorted(matches, key=lambda pair: -pair[1].f1):
        if wanted in match.title.lower() or wanted in match.label:
            told.setdefault(latent, f"{match.title} (F1 {match.f1:.2f})")
    for latent, ones in explained(card).by_latent.items():
        said = next((one for one in ones if wanted in one.text.lower()), None)
        if said:
            told.setdefault(latent, said.line)
    for latent, text in told.items():
        yield _hit("latent", f"{latent} · {text}", card.name,
                   link("latent", run=card.name, latent=latent))  # fmt: skip


def _everywhere(here: RunCard | None, text: str) -> Iterator[Hit]:
    """The search of examples and tokens, which takes longer: a page of its own."""
    if here and here.features_path.is_file():
        about = "in this run's names, tokens and texts"
        yield _hit("search", text.strip(), about, link("latents", run=here.name, q=text.strip()))
    if here:
        yield _hit("prompt", text.strip(), "which latents fire on this text",
                   link("try", run=here.name, prompt=text.strip()))  # fmt: skip


def _hit(kind: str, title: str, about: str, href: str = "", put: str = "") -> Hit:
    return Hit(kind=kind, title=title, about=about, href=href, put=put)
