"""The runs: one line each, with the figures one chooses by."""

from feature_browser.canvas import show
from feature_browser.catalogue import Catalogue, RunCard
from feature_browser.chrome import message
from feature_browser.markup import EMPTY, Html, html, joined
from feature_browser.numbers import UNKNOWN, count, real, share_of_whole, short_count
from feature_browser.place import Place
from feature_browser.tables import Column, cell, link, table

COLUMNS = [
    Column("Run"),
    Column("Variant"),
    Column("Model · hook"),
    Column("Latents", "width of the dictionary", numeric=True),
    Column("Tokens", "trained on", numeric=True),
    Column("L0", "latents active per token", numeric=True),
    Column("FVU", "variance unexplained on held-out text; 0 is perfect", numeric=True),
    Column("CE recovered", "1 is the plain model, 0 zeros in this place", numeric=True),
    Column("Dead", "latents that never fired on held-out text", numeric=True),
    Column("Features"),
]


def runs_view(catalogue: Catalogue, place: Place, *, notice: Html = EMPTY) -> None:
    """Draw the list of runs, below a notice if there is one."""
    parts = [notice] if notice else []
    if catalogue.runs:
        parts.append(_table(catalogue, place))
    elif not notice:
        parts.append(_no_runs(catalogue))
    parts += [message("A run was left out", problem) for problem in catalogue.problems]
    show(html('<div class="page wide">{parts}</div>', parts=joined(parts)), "runs")


def no_such_run(catalogue: Catalogue, name: str) -> Html:
    """What to say of a run that is not there."""
    return message(
        f"There is no run {name}",
        f"Looked for finished runs in {catalogue.root} and below it, and found "
        f"{count(len(catalogue.runs))}. Choose one of them.",
    )


def _no_runs(catalogue: Catalogue) -> Html:
    return message(
        "No runs yet",
        f"There is no finished run in {catalogue.root} or below it. The demo makes two, with the "
        "shipped language model, in about three minutes on a CPU:",
        command=f"saelab demo --out {(catalogue.root / 'demo').as_posix()}",
    )


def _table(catalogue: Catalogue, place: Place) -> Html:
    rows = (_row(card, place) for card in catalogue.runs.values())
    title = html(
        '<h1 class="headline">{n} {noun} in {root}</h1>',
        n=count(len(catalogue.runs)),
        noun="run" if len(catalogue.runs) == 1 else "runs",
        root=catalogue.root,
    )
    return joined([title, table(COLUMNS, rows, "Runs")])


def _row(card: RunCard, place: Place) -> list[Html]:
    href = Place(run=card.name, context=place.context).href
    return [
        html("<b>{l}</b>", l=link(href, card.name)),
        cell(card.variant),
        html('{model} · <span class="sub">{site}</span>', model=card.model, site=card.site),
        cell(count(card.d_sae)),
        cell(short_count(card.n_tokens)),
        cell(real(card.l0, 1)),
        cell(real(card.fvu, 3)),
        cell(UNKNOWN if card.ce_recovered is None else share_of_whole(card.ce_recovered)),
        cell(UNKNOWN if card.dead is None else count(card.dead)),
        cell("collected" if card.features_path.is_file() else "not collected"),
    ]
