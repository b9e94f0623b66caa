"""Two runs side by side: their figures, and which latents of one are in the other."""

import math
from collections.abc import Callable

import numpy as np
import streamlit as st

from feature_browser.data.address import link
from feature_browser.data.catalogue import Catalogue, RunCard
from feature_browser.data.labels import LatentNames
from feature_browser.draw.boxes import alone, bar, boxed, message
from feature_browser.draw.charts import cosine_chart
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.names import named
from feature_browser.draw.numbers import THIN, count, percent, real
from feature_browser.draw.tables import (
    Column,
    anchor,
    cell,
    choice,
    metered,
    page_of,
    part,
    table,
)
from feature_browser.pages import Page
from feature_browser.pages.compare.address import SIDES, CompareAddress
from feature_browser.pages.compare.code import compare_elsewhere
from feature_browser.pages.compare.correspondence import ALIKE, KINDS, Correspondence, Side
from feature_browser.pages.compare.job import Progress
from feature_browser.pages.compare.pairs import match_some, matched
from feature_browser.pages.compare.places import cannot_match
from feature_browser.pages.compare.run_figures import figures
from feature_browser.pages.compare.start import Start, beginning, same_start, untrained
from feature_browser.shell.canvas import show
from saelab.config import UsageError

ROWS = 25
Asked = Callable[[RunCard, RunCard], Correspondence | Progress | None]
SECONDS_BETWEEN_LOOKS = 1.0


def compare_view(catalogue: Catalogue, card: RunCard, address: CompareAddress) -> None:
    """Draw the comparison with the run that the address names, or the choice of one."""
    others = [run for run in catalogue.runs.values() if run.name != card.name]
    if not others:
        show(alone(_alone_here(catalogue)), "compare")
        return
    other = catalogue.runs.get(address.other or "")
    if other is None or other.name == card.name:
        show(alone(joined([_choose(card, others, address)])), "compare")
        match_some(card, others)
        return
    parts = [_title(card, other, address), *_caveats(card, other), figures(card, other)]
    try:
        problem = cannot_match(card, other)
        found = None if problem else matched(card, other)
    except UsageError as error:
        problem, found = str(error), None
    if problem:
        parts.append(html('<p class="notice" role="status">{text}</p>', text=problem))
    start = None
    if isinstance(found, Correspondence):
        start = same_start(card, other, found)
        parts += _latents(found, start, card, other, address)
    show(alone(joined(parts)), "compare")
    if isinstance(found, Progress):
        _waiting(card, other, matched, "Comparing decoders")
    elif isinstance(start, Progress):
        _waiting(card, other, untrained, "Comparing initial decoders")


@st.fragment(run_every=SECONDS_BETWEEN_LOOKS)
def _waiting(card: RunCard, other: RunCard, asked: Asked, what: str) -> None:
    """The progress of a comparison, until it is done."""
    try:
        found = asked(card, other)
    except UsageError:
        # The whole page says it, beside the figures.
        st.rerun()
    if not isinstance(found, Progress):
        st.rerun()
    show(alone(joined([_progress(found, what)])), "comparing")


def _progress(found: Progress, what: str) -> Html:
    text = (
        "The nearest latent of every latent is being found, once: what is found is kept. You may "
        "leave this page."
    )
    left = ""
    if found.seconds_left is not None:
        left = f", about {count(max(1, math.ceil(found.seconds_left)))}{THIN}s left"
    title = f"{what}: {100 * found.share:.0f}{THIN}%{left}"
    return message(title, text, after=bar(found.share))


def _alone_here(catalogue: Catalogue) -> Html:
    return message(
        "There is nothing to compare with",
        f"{catalogue.root} holds one finished run. Train a second one on the same activations, "
        "with another variant, sparsity or seed:",
        command="saelab train --help",
    )


def _choose(card: RunCard, others: list[RunCard], address: CompareAddress) -> Html:
    notice = EMPTY
    if address.other is not None and address.other != card.name:
        notice = html('<p class="notice" role="status">There is no run {n}.</p>', n=address.other)
    columns = [
        Column("Compare with"),
        Column("Variant"),
        Column("Model · hook"),
        Column("Latents", numeric=True),
        Column("FVU", numeric=True),
        Column("Latents can be matched"),
    ]
    # Runs at the same site come first: their latents can be matched.
    ordered = sorted(others, key=lambda run: (_elsewhere(card, run), run.name))
    rows = [
        [
            anchor(address.to(other=run.name, page=1).href, run.name),
            cell(run.variant),
            html('{m} · <span class="sub">{s}</span>', m=run.model, s=part(run.site, "hook")),
            cell(count(run.d_sae)),
            cell(real(run.fvu, 3)),
            cell("no: another place" if _elsewhere(card, run) else "yes"),
        ]
        for run in ordered
    ]
    title = html('<h1 class="headline">Compare {name} with another run</h1>', name=card.name)
    return joined([title, notice, table(columns, rows, "Runs to compare with")])


def _elsewhere(card: RunCard, other: RunCard) -> bool:
    return (card.site, card.model) != (other.site, other.model)


def _title(card: RunCard, other: RunCard, address: CompareAddress) -> Html:
    back = address.to(other=None, keep="", page=1)
    turned = link("compare", run=other.name, other=card.name)
    return html(
        '<h1 class="headline">{a} against {b}</h1><p class="sub"><a href="{back}">another run</a>'
        ' · <a href="{turned}">swap the two</a></p>',
        a=card.name, b=other.name, back=back.href, turned=turned,
    )  # fmt: skip


def _caveats(card: RunCard, other: RunCard) -> list[Html]:
    texts = []
    if card.corpus != other.corpus:
        texts.append(
            "The two runs were trained on different text, so their figures are of different data."
        )
    if card.has_forms != other.has_forms:
        name = (card if card.has_forms else other).name
        texts.append(
            f"The FVU of {name} is that of outer products of activations, so the two differ."
        )
    return [html('<p class="notice" role="status">{text}</p>', text=text) for text in texts]


def _latents(
    found: Correspondence,
    start: Start | Progress | None,
    card: RunCard,
    other: RunCard,
    address: CompareAddress,
) -> list[Html]:
    turned = address.side == "other"
    here, there = (other, card) if turned else (card, other)
    side = found.other if turned else found.this
    same = (start.same_other if turned else start.same) if isinstance(start, Start) else None
    latents = side.of_kind(address.keep)
    rows, links = page_of(address, len(latents), ROWS)
    return [
        beginning(found, start, card, other),
        _kinds(found, card, other, address),
        _which(len(latents), len(side.kind), (card, other), address),
        _table(side, latents[rows], (here, there), same),
        links,
    ]


def _which(shown: int, total: int, runs: tuple[RunCard, RunCard], address: CompareAddress) -> Html:
    """The number of latents listed below, and the choice of the run."""
    options = [
        (run.name, address.to(side=side, page=1), side == address.side)
        for side, run in zip(SIDES, runs, strict=True)
    ]
    kind = f"{address.keep} " if address.keep else ""
    return html(
        '<div class="spread"><p class="sub summary">{n} {kind}of {all} latents</p>{sides}</div>',
        n=count(shown), kind=kind, all=count(total), sides=choice("latents of", options),
    )  # fmt: skip


def _kinds(found: Correspondence, card: RunCard, other: RunCard, address: CompareAddress) -> Html:
    columns = [
        Column("Kind"),
        Column(card.name, numeric=True),
        Column(other.name, numeric=True),
        Column("Means"),
    ]
    sides = (found.this.counts(), found.other.counts())
    rows = [
        [_kind_link(name, address), *(_share(counts, name) for counts in sides), cell(text)]
        for name, text in KINDS.items()
    ]
    every = html('<a href="{h}"{on}>all</a>', h=address.to(keep="", page=1).href,
                 on=EMPTY if address.keep else Html(' aria-current="true"'))  # fmt: skip
    sums = [cell(count(sum(counts.values()))) for counts in sides]
    rows.append([every, *sums, cell("")])
    hint = f"decoder cosine, alike from {ALIKE}"
    return html(
        '<div class="two wide-left"><div>{kinds}</div><div>{chart}</div></div>',
        kinds=boxed("Which latents do they share?", table(columns, rows, "Kinds"), hint=hint),
        chart=boxed(
            f"Nearest latent of {other.name}", cosine_chart(*found.histogram(), limit=ALIKE)
        ),
    )


def _kind_link(name: str, address: CompareAddress) -> Html:
    return html(
        '<a href="{h}"{on}>{name}</a>',
        h=address.to(keep=name, page=1).href, name=name,
        on=Html(' aria-current="true"') if address.keep == name else EMPTY,
    )  # fmt: skip


def _share(counts: dict[str, int], name: str) -> Html:
    return html(
        '{n} <span class="sub">{share}</span>',
        n=cell(count(counts[name])),
        share=part(percent(counts[name] / max(1, sum(counts.values()))), "share"),
    )  # fmt: skip


def _table(
    side: Side, latents: np.ndarray, runs: tuple[RunCard, RunCard], same: np.ndarray | None
) -> Html:
    here, there = runs
    if not len(latents):
        return html('<p class="sub">No latent is of this kind.</p>')
    columns = [
        Column("Latent"),
        Column("Name", "its label, the known feature it matches, or what its examples share"),
        Column("Kind"),
        Column("Cosine", "to its nearest in the other run", numeric=True),
        Column("Nearest"),
        Column("Its name"),
        Column("Followers", "latents of the other run that have it as their nearest", numeric=True),
    ]
    ours, theirs = LatentNames.of(here), LatentNames.of(there)
    names = list(KINDS)
    rows = []
    for latent in map(int, latents):
        alike = same is not None and same[latent]
        began = html(" · {a}", a=part("yes", "began alike", "began alike")) if alike else EMPTY
        nearest, cosine = int(side.nearest.row[latent]), float(side.nearest.cosine[latent])
        rows.append(
            [
                anchor(link("latent", run=here.name, latent=latent), latent),
                named(ours.best(latent)),
                html("{kind}{began}", kind=names[side.kind[latent]], began=began),
                metered(real(cosine, 3), cosine),
                anchor(link("latent", run=there.name, latent=nearest), nearest),
                named(theirs.best(nearest)),
                cell(count(int(side.followers[latent]))),
            ]
        )
    return table(columns, rows, "Latents and their nearest")


PAGE = Page(
    "Compare", CompareAddress, compare_view, asks="Which latents do two runs share?",
    elsewhere=compare_elsewhere,
)  # fmt: skip
