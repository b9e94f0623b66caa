"""What the Latent page says of a latent's steering scores."""

import numpy as np

from feature_browser.data.address import link
from feature_browser.data.reading import steering_scores
from feature_browser.draw.boxes import bar, boxed, pairs
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.numbers import real
from feature_browser.pages.latent.cards import LatentScene
from saelab.analysis.steering.records import HIGH_INPUT, HIGH_OUTPUT, SteeringScores
from saelab.config import UsageError

TITLE = "Does it move the model?"


def steering(scene: LatentScene) -> Html:
    """Both scores of each pole in words; nothing if they were not computed."""
    try:
        scores = steering_scores(scene.run.card)
    except UsageError as error:
        return boxed(TITLE, html('<p class="sub">{error}</p>', error=error))
    if scores is None:
        return EMPTY
    rows = np.flatnonzero(scores.latent == scene.record.latent)
    if not len(rows):
        return EMPTY
    run, latent = scene.address.run, scene.record.latent
    leads = html(
        '<p class="sub"><a href="{h}">Open in Steering</a> · <a href="{l}">Steer with it</a></p>',
        h=link("steering", run=run, q=latent),
        l=link("steering", run=run, part="live", latent=latent),
    )  # fmt: skip
    return boxed(TITLE, joined([*(_pole(scores, int(row)) for row in rows), leads]))


def _pole(scores: SteeringScores, row: int) -> Html:
    given, output = float(scores.input[row]), float(scores.output[row])
    side = " (negative)" if scores.sign[row] < 0 else ""
    return html(
        '{input}{bar_in}{output}{bar_out}<p class="sub">{verdict}</p>',
        input=pairs([(f"input score{side}", real(given))]),
        bar_in=EMPTY if np.isnan(given) else bar(given),
        output=pairs([(f"output score{side}", real(output, 3))]),
        bar_out=bar(output),
        verdict=_verdict(given, output),
    )


def _verdict(given: float, output: float) -> str:
    if output < HIGH_OUTPUT:
        return "Added, it does not make the model say what it promises."
    if np.isnan(given):
        return "Added, the model says what it promises; it has too few examples for an input score."
    if given >= HIGH_INPUT:
        return "It fires on what it promises, and added, the model says it."
    return "An output feature: it steers better than its examples suggest."
