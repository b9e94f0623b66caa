"""The results of a steering experiment as cards: both texts token by token, and the doses."""

import math
from typing import TYPE_CHECKING

import numpy as np

from feature_browser.draw.boxes import boxed, pairs
from feature_browser.draw.markup import EMPTY, Html, escaped, html, joined, running
from feature_browser.draw.numbers import activation, count, percent, real, short_count
from feature_browser.draw.tables import Column, cell, table
from feature_browser.pages.steering.experiment import UNITS, Experiment
from saelab.console import isolated, visible

if TYPE_CHECKING:
    from saelab.analysis.steering.dose import DoseResponse
    from saelab.analysis.steering.generate import Comparison, Continuation, GeneratedToken

TIMES = "\u00d7"
SURPRISING = 8.0
"""Log-probability, in nats, at which a token has full shade: a probability of 0.03 %."""
ERRORS = {
    "keep": "Error kept: the changed reconstruction less the unchanged one is added to the "
    "activation, so what the SAE misses stays.",
    "drop": "Error dropped: the changed reconstruction takes the activation's place, so what the "
    "SAE misses is gone, steered or not.",
}


def strength_text(experiment: Experiment) -> str:
    """The change in words: "add 2 times its maximum to latent 98"."""
    several = len(experiment.latents) > 1
    which = f"latent{'s' * several} " + ", ".join(map(str, experiment.latents))
    amount = f"{experiment.strength:g}".replace("-", "\u2212")
    unit = {
        "latent_max": f" {TIMES} {'their maxima' if several else 'its maximum'}",
        "a_max": f" {TIMES} the strongest activation there",
        "absolute": "",
    }[experiment.unit]
    return {
        "add": f"add {amount}{unit} to {which}",
        "scale": f"multiply {which} by {amount}",
        "clamp": f"set {which} to {amount}{unit}",
        "ablate": f"ablate {which}",
    }[experiment.op]


def effect_line(comparison: "Comparison") -> Html:
    """The change's effect on the prompt's activations, and whether the error was kept."""
    effect = comparison.effect
    left_out = ""
    if n := effect.n_left_out:
        left_out = (
            f"{count(n)} more {'was' if n == 1 else 'were'} left as the model has "
            f"{'it' if n == 1 else 'them'}: massive activations, which this SAE was not trained on."
        )
    return html(
        '<p class="sub">Checked in the model: {changed} of {rows} positions of the prompt that '
        "were to change did, by {shift} of their length; no other did. {left_out} {error}</p>",
        changed=count(effect.n_changed), rows=count(effect.n_rows), shift=percent(effect.shift),
        left_out=left_out, error=ERRORS[comparison.change.error],
    )  # fmt: skip


def texts(comparison: "Comparison", kept: Html = EMPTY) -> Html:
    """Plain and steered text side by side; `kept` compares them with a saved result."""
    plain, steered = comparison.plain[0], comparison.steered[0]
    hint = "darker: less likely to the model unsteered"
    both = joined(
        [
            boxed("Baseline", said(comparison.prompt, plain), hint=hint),
            boxed("Steered", joined([said(comparison.prompt, steered), kept])),
        ]
    )
    return joined([html('<div class="two even">{b}</div>', b=both), _by_token(plain, steered)])


def said(prompt: str, continuation: "Continuation") -> Html:
    """A continuation behind its prompt, with its figures."""
    return joined([_text(prompt, continuation), _figures(continuation)])


def _text(prompt: str, continuation: "Continuation") -> Html:
    gap = escaped(continuation.gap)
    tokens = joined(
        html("{token}{gap}", token=_token(token, piece), gap=gap)
        for token, piece in zip(continuation.tokens, continuation.pieces, strict=True)
    )
    return html(
        '<p class="text strip" dir="auto"><span class="beyond">{prompt}</span>{gap}{tokens}</p>',
        prompt=running(visible(prompt)),
        gap=gap, tokens=tokens,
    )  # fmt: skip


def _token(token: "GeneratedToken", piece: str) -> Html:
    share = min(1.0, max(0.0, -token.plain_log_prob / SURPRISING))
    return html(
        '<span class="tok on neg" style="--a:{a}" tabindex="0" data-tip="{tip}">{text}</span>',
        a=f"{share:.2f}",
        tip=f"{isolated(visible(token.text).strip())}\n"
        f"log-probability {real(token.log_prob)} where it was drawn\n"
        f"log-probability {real(token.plain_log_prob)} unsteered\n"
        f"KL to unsteered {real(token.kl)} nats",
        text=running(visible(piece)),
    )


def _figures(continuation: "Continuation") -> Html:
    mean = float(np.mean([token.log_prob for token in continuation.tokens]))
    kl = float(np.mean([token.kl for token in continuation.tokens]))
    return pairs(
        [
            ("mean log-probability where drawn", f"{real(mean)} nats"),
            ("perplexity, unsteered model", _large(continuation.perplexity)),
            ("mean KL to unsteered", f"{real(kl)} nats"),
            ("repeated bigrams", percent(continuation.repetition)),
        ]
    )


def _by_token(plain: "Continuation", steered: "Continuation") -> Html:
    columns = [
        Column("Token", "place in the continuation"),
        Column("Baseline"),
        Column("log p", "of the baseline's token", numeric=True, saved="log p of the baseline's"),
        Column("Steered"),
        Column("log p", "under the steered model", numeric=True),
        Column("log p unsteered", "of the same token", numeric=True),
        Column("KL", "of the two distributions at this place, in nats", numeric=True),
    ]
    rows = [
        [
            cell(place),
            html("<code>{t}</code>", t=visible(a.text)),
            cell(real(a.log_prob)),
            html("<code>{t}</code>", t=visible(b.text)),
            cell(real(b.log_prob)),
            cell(real(b.plain_log_prob)),
            cell(real(b.kl)),
        ]
        for place, (a, b) in enumerate(zip(plain.tokens, steered.tokens, strict=True), 1)
    ]
    return html(
        '<details class="card folded"><summary>Token by token</summary>{t}</details>',
        t=table(columns, rows, "Token by token"),
    )


def doses(dose: "DoseResponse", experiment: Experiment) -> Html:
    """The continuation at each strength."""
    unit = "as a factor" if experiment.op == "scale" else f"in units {UNITS[experiment.unit]}"
    target = visible(dose.target).strip()
    rows = [
        [cell(real(s)), cell(real(p)), cell(_large(x)), html("<code>{t}</code>", t=visible(t))]
        for s, p, x, t in zip(
            dose.strengths, dose.target_log_prob, dose.perplexity, dose.said, strict=True
        )
    ]
    columns = [
        Column("Strength", unit, numeric=True),
        Column(f"log p “{target}”", "of the token right after the prompt", numeric=True),
        Column("Perplexity", "of samples at temperature 0.7, unsteered model", numeric=True),
        Column("Says"),
    ]
    return boxed("What is said at each strength", table(columns, rows, "Doses"))


def _large(value: float) -> str:
    """A number with three digits; huge ones in k, M, G."""
    huge = math.isfinite(value) and value >= 10_000
    return short_count(round(value)) if huge else activation(value)
