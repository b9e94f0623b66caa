"""Home: the runs as cards, with their main figures."""

from dataclasses import dataclass

from feature_browser.data.address import AbstractAddress, link
from feature_browser.data.catalogue import Catalogue, RunCard
from feature_browser.data.glossary import meaning_of
from feature_browser.data.growing import GrowingRun, progress
from feature_browser.draw.boxes import alone, bar, message
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.numbers import UNKNOWN, count, percent, real, share_of_whole, short_count
from feature_browser.pages import Page
from feature_browser.shell.canvas import show
from saelab.config import UsageError
from saelab.console import duration
from saelab.training.sets import is_set


@dataclass(frozen=True, kw_only=True)
class RunsAddress(AbstractAddress):
    """The page has no parameters of its own."""

    view = "runs"


def runs_view(catalogue: Catalogue, card: RunCard | None, address: RunsAddress) -> None:
    """Draw the runs, below a notice if the requested run does not exist."""
    gone = card is None and address.run is not None and (catalogue.runs or catalogue.damaged)
    notice = no_such_run(catalogue, address.run or "") if gone else EMPTY
    parts = [notice] if notice else []
    if catalogue.growing:
        parts.append(_growing(catalogue))
    if catalogue.runs:
        parts.append(_cards(catalogue, address))
    elif not (catalogue.damaged or catalogue.growing or notice):
        parts.append(_no_runs(catalogue))
    parts += [
        message(f"The run {name} was left out", problem)
        for name, problem in catalogue.damaged.items()
        if not notice or name != address.run
    ]
    parts += [message("Not all was searched", problem) for problem in catalogue.problems]
    show(alone(joined(parts)), "runs")


def no_such_run(catalogue: Catalogue, name: str) -> Html:
    """The message for a run that does not exist or is damaged."""
    if name in catalogue.damaged:
        return message(f"The run {name} cannot be shown", catalogue.damaged[name])
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


def _cards(catalogue: Catalogue, address: RunsAddress) -> Html:
    title = html(
        '<h1 class="headline">{n} {noun} in {root}</h1>',
        n=count(len(catalogue.runs)),
        noun="run" if len(catalogue.runs) == 1 else "runs",
        root=catalogue.root,
    )
    cards = joined(_card(card, address) for card in catalogue.runs.values())
    return html(
        '{title}{sets}<div class="runs">{cards}</div>',
        title=title, sets=_sets(catalogue, address), cards=cards,
    )  # fmt: skip


def _growing(catalogue: Catalogue) -> Html:
    """The runs that are not finished, with their progress."""
    cards = joined(map(_growing_card, catalogue.growing.values()))
    return html('<h1 class="headline">In training</h1><div class="runs">{c}</div>', c=cards)


def _growing_card(run: GrowingRun) -> Html:
    try:
        now = progress(run, run.log())
    except UsageError as error:
        return message(run.name, str(error))
    left = f" · {duration(now.seconds_left)} left" if run.writer and now.seconds_left else ""
    return html(
        '<article class="card run"><h2><a href="{href}">{name}</a><span class="chip">{state}</span>'
        '</h2><p class="sub">{site}<br>{share} of its tokens{left}</p>{bar}</article>',
        href=link("training", run=run.name), name=run.name,
        state="in training" if run.writer else "unfinished", site=run.config.get("site", ""),
        share=UNKNOWN if now.share is None else percent(now.share), left=left,
        bar=bar(now.share or 0.0),
    )  # fmt: skip


def _sets(catalogue: Catalogue, address: RunsAddress) -> Html:
    """A link to each set that one of the runs belongs to."""
    first = {card.path.parent: card for card in reversed(catalogue.runs.values())}
    links = [
        html('<a href="{href}">the set {name}</a>', href=_to("set", card, address),
             name=place.resolve().name)
        for place, card in sorted(first.items())
        if is_set(place)
    ]  # fmt: skip
    return html('<p class="leads">{links}</p>', links=joined(links)) if links else EMPTY


def _card(card: RunCard, address: RunsAddress) -> Html:
    return html(
        '<article class="card run"><h2><a href="{href}">{name}</a><span class="chip"><b>{variant}'
        '</b></span></h2><p class="sub">{model} · {site}<br>{latents} latents, {origin}</p>'
        "<dl>{figures}</dl>{known}{todo}</article>",
        href=_to("latent", card, address), name=card.name,
        variant=card.variant, model=card.model, site=card.site, latents=count(card.d_sae),
        origin=_origin(card), figures=_figures(card), known=_known(card, address),
        todo=_todo(card, address),
    )  # fmt: skip


def _to(view: str, card: RunCard, address: RunsAddress) -> str:
    """A page of another run, with the same amount of text around examples."""
    return link(view, run=card.name, context=dict(address.carried).get("context"))


def _origin(card: RunCard) -> str:
    if card.origin is not None:
        return f"imported from {card.origin.tool}"
    return f"trained on {short_count(card.n_tokens)} tokens"


def _figures(card: RunCard) -> Html:
    dead = UNKNOWN if card.dead is None else f"{count(card.dead)} of {count(card.d_sae)}"
    recovered = UNKNOWN if card.ce_recovered is None else share_of_whole(card.ce_recovered)
    rows = [
        ("L0", real(card.l0, 1)),
        ("FVU", real(card.fvu, 3)),
        ("CE recovered", recovered),
        ("dead", dead),
    ]
    return joined(
        html('<div title="{t}"><dt>{n}</dt><dd>{v}</dd></div>', t=meaning_of(name), n=name, v=value)
        for name, value in rows
    )


def _known(card: RunCard, address: RunsAddress) -> Html:
    if card.found is None:
        return EMPTY
    return html(
        '<p class="sub"><a href="{href}">{found} of {n} known features</a> found</p>{bar}',
        href=_to("known", card, address),
        found=count(card.found), n=count(card.n_known), bar=bar(card.found / card.n_known),
    )  # fmt: skip


def _todo(card: RunCard, address: RunsAddress) -> Html:
    """The card's link, or the commands still to be run; and what is damaged."""
    path = card.path.as_posix()
    missing = []
    if card.fvu is None:
        missing.append(f"saelab evaluate {path}")
    if not card.features_path.is_file():
        missing.append(f"saelab features {path}")
    elif card.n_sites == 1 and not (card.path / "steering.h5").is_file():
        missing.append(f"saelab steer {path} --all")
    commands = html("<pre><code>{c}</code></pre>", c="\n".join(missing)) if missing else EMPTY
    note = html('<p class="sub">Not computed yet. Run</p>') if missing else EMPTY
    damaged = joined(html('<p class="notice">{p}</p>', p=problem) for problem in card.problems)
    links = joined(
        html('<a href="{h}">{t}</a>', h=_to(view, card, address),
             t=title)
        for view, title in (("latents", "latents"), ("steering", "steering"), ("health", "health"),
                            ("compare", "compare"))
    )  # fmt: skip
    return html(
        '{damaged}{note}{commands}<p class="leads">{links}</p>',
        damaged=damaged, note=note, commands=commands, links=links,
    )  # fmt: skip


PAGE = Page("Runs", RunsAddress, runs_view, asks="Which runs are there, and how good is each?")
