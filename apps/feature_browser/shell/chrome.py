"""The top bar of every page: the run, how to reach another, its figures, and the pages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from feature_browser.data.address import AbstractAddress, link
from feature_browser.data.catalogue import RunCard
from feature_browser.data.elsewhere import NOWHERE, Elsewhere
from feature_browser.data.glossary import meaning_of
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.numbers import count, real, share_of_whole
from feature_browser.shell.dialogs import dialogs

MODEL_ROUTE = "/model"
"""Where the bar asks how far the model's loading is."""

_CODE = Html('<button data-open="code" title="This page as a command and as Python">Code</button>')


@dataclass(frozen=True)
class Bar:
    """What the bar shows beside the page.

    Attributes:
        titles: of the pages that concern the run, with the question that each answers.
        runs: the names of all runs, in their order.
        model: the state of the run's language model, and a sentence; None if it has none.
        elsewhere: the page as a command and as Python.
    """

    titles: Mapping[str, tuple[str, str]]
    runs: Sequence[str]
    card: RunCard | None
    model: tuple[str, str] | None = None
    elsewhere: Elsewhere = NOWHERE


def top_bar(bar: Bar, address: AbstractAddress) -> Html:
    """The run with its figures, links to the pages, and the dialogs that keys open."""
    views = joined(
        html(
            '<a href="{href}"{asks}{on}>{title}</a>',
            href=address.visit(view),
            asks=html(' title="{asks}"', asks=asks) if asks else EMPTY,
            on=Html(' aria-current="page"') if view == address.view else EMPTY,
            title=title,
        )
        for view, (title, asks) in bar.titles.items()
    )
    return html(
        '<header class="who"><a class="brand" href="{home}" title="Welcome: what this run is">'
        '<b>saelab</b></a>{run}<span class="chips">{chips}</span><span class="helps">'
        '<button data-open="palette" title="Go to a latent, page, run or label">Find '
        '<kbd>Ctrl K</kbd></button>{code}<button data-open="help" title="Keys and words">'
        '<kbd>?</kbd><span class="unseen">Keys and words</span></button></span></header>'
        '<nav class="top" aria-label="Views">{views}</nav>{dialogs}',
        home=link("welcome", run=address.run),
        run=_run(bar, address) if address.run in bar.runs else EMPTY,
        chips=_chips(bar, bar.card) if bar.card else EMPTY,
        views=views,
        dialogs=dialogs(address.run, bar.elsewhere),
        code=_CODE if bar.elsewhere != NOWHERE else EMPTY,
    )


def _run(bar: Bar, address: AbstractAddress) -> Html:
    """The run's name, between links to the same page of the runs before and after it."""
    name = address.run or ""
    at = bar.runs.index(name)
    steps = [
        html(
            '<a class="step" data-key="{key}" href="{href}" title="{name}: {key}" '
            'aria-label="{which} run, {name}">{sign}</a>',
            key=key,
            href=address.fresh(run=bar.runs[(at + by) % len(bar.runs)]).href,
            name=bar.runs[(at + by) % len(bar.runs)],
            which=which,
            sign=sign,
        )
        if len(bar.runs) > 1
        else EMPTY
        for key, by, which, sign in (("[", -1, "Previous", "\u2039"), ("]", 1, "Next", "\u203a"))
    ]
    return html(
        '<span class="of-run">{back}<a class="run-name" href="{runs}" '
        'title="{name}{path}\nall runs">{name}</a>{on}</span>',
        back=steps[0], on=steps[1], runs=address.visit("runs"), name=name,
        path=f"\n{bar.card.path.as_posix()}" if bar.card else "",
    )  # fmt: skip


def _chips(bar: Bar, card: RunCard) -> Html:
    identity = html(
        '<span class="chip whose" title="{variant} · {model} · {site}"><b>{variant}</b> · {model} '
        "· {site}</span>",
        variant=card.variant, model=card.model, site=card.site,
    )  # fmt: skip
    figures = [
        ("L0", None if card.l0 is None else real(card.l0, 1)),
        ("FVU", None if card.fvu is None else real(card.fvu, 3)),
        (
            "CE recovered",
            None if card.ce_recovered is None else share_of_whole(card.ce_recovered),
        ),
        ("dead", None if card.dead is None else f"{count(card.dead)} of {count(card.d_sae)}"),
    ]
    shown = joined(
        html(
            '<span class="chip" title="{help}">{name} <b>{value}</b></span>',
            help=meaning_of(name), name=name, value=value,
        )
        for name, value in figures
        if value is not None
    )  # fmt: skip
    return joined([identity, shown, _model(card, *bar.model) if bar.model else EMPTY])


def _model(card: RunCard, state: str, says: str) -> Html:
    """The state of the language model; the canvas keeps it up to date while it is loading."""
    return html(
        '<span class="chip" role="status" title="{says}" data-model="{state}" data-run="{run}">'
        "model <b>{state}</b></span>",
        says=says, state=state, run=card.name,
    )  # fmt: skip
