"""The health of a run: the use of its latents, its decoder, and its training."""

from collections.abc import Callable
from typing import Any

import numpy as np

from feature_browser.data.catalogue import Catalogue, RunCard
from feature_browser.data.elsewhere import Elsewhere, command, python
from feature_browser.data.reading import (
    OpenRun,
    decoder_norms,
    evaluation,
    facts,
    metrics,
    open_run,
    stamp,
)
from feature_browser.data.weights import width
from feature_browser.draw.boxes import alone, boxed, pairs
from feature_browser.draw.charts import density_chart
from feature_browser.draw.curves import curves
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.numbers import THIN, activation, count, percent, real
from feature_browser.pages import Page
from feature_browser.pages.health.densities import (
    ALIKE,
    DENSE,
    Densities,
    Twins,
    evaluated_densities,
    feature_densities,
    twins,
)
from feature_browser.pages.health.latent_lists import HealthAddress, lists, massive_latents
from feature_browser.pages.health.measured import measured
from feature_browser.shell.canvas import palette, plot, show
from saelab.config import UsageError


def health_view(_: Catalogue, card: RunCard, address: HealthAddress) -> None:
    """Draw the existing parts of the run; for a missing or damaged file, a sentence is shown."""
    problems: list[str] = []
    run = _tried(lambda: open_run(card) if card.features_path.is_file() else None, problems)
    density = _tried(lambda: evaluation(card, "density"), problems)
    dictionary = _tried(lambda: evaluation(card, "dictionary"), problems)
    found = feature_densities(run.features.file) if run else evaluated_densities(density or {})
    signed = run is not None and bool(run.columns["n_negative"].any())
    pairs_found = twins(run.features.file, signed=signed) if run else None
    parts = [_headline(card, found, pairs_found), *map(_problem, problems)]
    parts.append(
        html(
            '<div class="two wide-left"><div>{densities}</div><div>{decoder}</div></div>',
            densities=_densities(card, found),
            decoder=_decoder(card, dictionary or {}, density or {}),
        )
    )
    if found is not None:
        parts += [_massive(run), lists(found, pairs_found, run, address)]
    parts.append(_evaluation(card, address))
    show(alone(joined(parts)), "health")
    _training(card)


def _tried(read: Callable[[], Any], problems: list[str]) -> Any:  # noqa: ANN401 - what read gives
    try:
        return read()
    except UsageError as error:
        problems.append(str(error))
        return None


def _problem(text: str) -> Html:
    return html('<p class="notice" role="status">{text}</p>', text=text)


def _headline(card: RunCard, found: Densities | None, pairs_found: Twins | None) -> Html:
    if found is None:
        return html('<h1 class="headline">Health of {name}</h1>', name=card.name)
    n_alike = None if pairs_found is None else len(pairs_found.latent)
    alike = "" if n_alike is None else f", {count(n_alike)} pair{'s' * (n_alike != 1)} alike"
    return html(
        '<h1 class="headline">{dead} of {all} latents are dead, {dense} {fire} on more than '
        '{limit} of tokens{alike}</h1><p class="sub">Counted on {n} tokens, '
        "{source}: the dead never fired on them; alike are decoder rows with a cosine above "
        "{cos}.</p>",
        dead=count(len(found.dead)), all=count(len(found.density)), dense=count(len(found.dense)),
        fire="fires" if len(found.dense) == 1 else "fire", limit=f"{100 * DENSE:g}{THIN}%",
        alike=alike,
        n=count(found.n_tokens), source=found.source, cos=ALIKE,
    )  # fmt: skip


def _massive(run: OpenRun | None) -> Html:
    """How many latents serve massive activations, and how many such activations were read."""
    n = len(massive_latents(run))
    if run is None or not n:
        return EMPTY
    known = facts(run).get("massive") or {}
    rows, limit = known.get("rows"), known.get("above_norm")
    told = ""
    if isinstance(rows, int) and isinstance(limit, int | float):
        told = (
            f" {count(rows)} of {count(int(facts(run)['n_tokens']))} tokens that were read have "
            f"one, with a norm above {activation(float(limit))}."
        )
    return html(
        '<p class="notice" role="status">{n} fire only or mostly on massive activations: '
        "attention sinks and the like, of many times the usual norm. Such latents say little of "
        "the text.{told}</p>",
        n=f"{count(n)} latent{'s' * (n != 1)}", told=told,
    )  # fmt: skip


def _densities(card: RunCard, found: Densities | None) -> Html:
    title = "How often do the latents fire?"
    if found is None:
        text = html(
            '<p class="sub">Neither features.h5 nor evaluation/density.json says. Run</p>'
            "<pre><code>saelab features {path}</code></pre>",
            path=card.path.as_posix(),
        )
        return boxed(title, text)
    edges, counts = found.histogram()
    chart = density_chart(edges, counts, DENSE)
    alive = found.density[found.density > 0]
    hint = f"dashed: dense · {count(len(found.dead))} dead not drawn"
    if len(alive):
        middle = f"Half of the living latents fire on less than {percent(float(np.median(alive)))}."
        chart = html('{chart}<p class="sub">{middle}</p>', chart=chart, middle=middle)
    return boxed(title, chart, hint=hint)


def _decoder(card: RunCard, dictionary: dict[str, Any], density: dict[str, Any]) -> Html:
    title = "Decoder"
    rows = []
    try:
        norms = decoder_norms(card)
        rows = [
            ("latents, inputs", f"{count(len(norms))}, {count(width(card.weights_path)[1])}"),
            (
                "norm, least and largest",
                f"{real(float(norms.min()), 3)}, {real(float(norms.max()), 3)}",
            ),
            ("mean norm", f"{real(float(norms.mean()), 3)} ± {real(float(norms.std()), 3)}"),
            ("norm not 1", f"{count(int((np.abs(norms - 1) > 1e-3).sum()))} latents"),
        ]
        note = EMPTY
    except UsageError as error:
        note = _problem(str(error))
    rows += _measured(dictionary)
    rows += _quantiles(density)
    if not dictionary and not card.has_forms:
        command = f"saelab evaluate {card.path.as_posix()}"
        ask = '<p class="sub">Alignment with the encoder was not measured. Run</p>{c}'
        note = joined([note, html(ask, c=html("<pre><code>{c}</code></pre>", c=command))])
    return boxed(title, joined([pairs(rows), note]))


def _measured(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Figures from `evaluation/dictionary.json`, if it exists."""
    names = {
        "nearest_mean": "cosine to the nearest, mean",
        "encoder_mean": "cosine of encoder and decoder",
        "encoder_min": "the lowest of them",
    }
    return [(text, real(v)) for key, text in names.items() if _is_number(v := values.get(key))]


def _quantiles(values: dict[str, Any]) -> list[tuple[str, str]]:
    """L0 over held-out tokens, from `evaluation/density.json`."""
    found = values.get("l0_quantiles")
    if not isinstance(found, list) or len(found) != 5 or not all(map(_is_number, found)):
        return []
    low, _, middle, _, high = found
    return [("L0, median and 90 % of tokens", f"{middle:g}, {low:g} to {high:g}")]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))


def _evaluation(card: RunCard, address: HealthAddress) -> Html:
    """A link to the tables of the evaluation, or the tables."""
    if not next(card.path.glob("evaluation/*.json"), None):
        return EMPTY
    opened = address.part == "measured"
    link = html(
        '<p><a href="{h}">{text}</a></p>',
        h=address.to(part="" if opened else "measured").href,
        text="close what was measured" if opened else "show everything that was measured",
    )
    if not opened:
        return link
    problems: list[str] = []
    tables = _tried(lambda: measured(card), problems)
    return joined([link, *map(_problem, problems), tables or EMPTY])


def _training(card: RunCard) -> None:
    log = card.path / "metrics.jsonl"
    try:
        lines = metrics(card.path, stamp(log)) if log.is_file() else []
        missing = f"{log} is missing or empty."
        if card.origin is not None:
            missing = f"Not trained here: imported from {card.origin.tool}."
        said = f"{count(len(lines))} logged steps" if lines else missing
    except UsageError as error:
        lines, said = [], str(error)
    show(alone(html('<h2>Training</h2><p class="sub">{said}</p>', said=said)), "training")
    if lines:
        plot(curves(card.path, stamp(log), palette()), "curves")


def health_elsewhere(card: RunCard, _: HealthAddress) -> Elsewhere:
    """The measurements of the run."""
    return Elsewhere(
        command("show", card.path),
        python(
            card, "import saelab", "", "saelab.figure(saelab.load_evaluation(saelab.Run($RUN)))"
        ),
    )


PAGE = Page(
    "Health",
    HealthAddress,
    health_view,
    asks="Is this SAE any good: what it loses, what never fires, what fires too often?",
    elsewhere=health_elsewhere,
)
