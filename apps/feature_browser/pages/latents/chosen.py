"""The table of a run that has the features of chosen latents alone."""

from feature_browser.data.address import link
from feature_browser.data.labels import LatentNames
from feature_browser.data.reading import OpenRun
from feature_browser.draw.markup import Html, html
from feature_browser.draw.numbers import activation, count, percent
from feature_browser.draw.tables import Column, anchor, cell, raised, table

MOST = 500
COLUMNS = [
    Column("Latent"),
    Column("Called"),
    Column("Density", numeric=True),
    Column("Max", numeric=True),
    Column("Fires on"),
    Column("Raises"),
]


def chosen_table(run: OpenRun) -> Html:
    """What is known of these latents, and how to collect it for others."""
    names, latents = LatentNames.of(run.card), run.features.latents
    rows = [_row(run, names, place, latent) for place, latent in enumerate(latents[:MOST])]
    more = "" if len(latents) <= MOST else f" The first {MOST} are shown."
    return html(
        '<p class="sub summary">{n} of {all} latents were chosen, and only theirs are the features '
        "here.{more} Others: <code>saelab features {run} --latents …</code>; all: without "
        "--latents, where memory and time allow it.</p>{table}",
        n=count(len(latents)),
        all=count(run.card.d_sae),
        more=more,
        run=run.card.path.as_posix(),
        table=table(COLUMNS, rows, "Chosen latents"),
    )


def _row(run: OpenRun, names: LatentNames, place: int, latent: int) -> list[Html]:
    note = names.labels.of(latent)
    return [
        anchor(link("latent", run=run.card.name, latent=latent), latent),
        cell(f"{'★ ' if note.bookmark else ''}{note.label}"),
        cell(percent(run.columns["density"][place])),
        cell(activation(run.columns["max"][place])),
        cell(names.shared(latent)),
        raised(run, latent),
    ]
