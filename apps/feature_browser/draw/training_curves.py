"""The training log as small charts, one per figure; the pointer reads all of them at one step."""

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from feature_browser.draw.charts import SMALL, Curve, line_chart
from feature_browser.draw.markup import Html, html, joined
from feature_browser.draw.numbers import MINUS, activation, short_count

CURVES = {
    "loss": "Loss",
    "fvu": "FVU",
    "l0": "L0, active latents per token",
    "dead": "Dead latents",
    "lr": "Learning rate",
    "tokens_per_second": "Tokens per second",
}
LOG = {"loss", "fvu", "gradient_norm"}
AXES = ("step", "tokens")
Columns = dict[str, Float[ndarray, " step"]]


def multiples(found: Columns, names: list[str], size: tuple[int, int] = SMALL) -> Html:
    """A chart of each of the logged figures `names`."""
    charts = joined(
        html(
            '<div class="small"><h3>{title} <b>{last}</b></h3>{chart}</div>',
            title=title(name), last=_last(found, name), chart=line_chart(_curve(found, name), size),
        )
        for name in names
    )  # fmt: skip
    return html('<div class="multiples{k}">{c}</div>', k="" if size == SMALL else " pair", c=charts)


def title(name: str) -> str:
    """What a logged figure is called."""
    return CURVES.get(name) or name.replace("_", " ").capitalize()


def logged(found: Columns) -> list[str]:
    """The figures that have a number at some step: those that every run has first."""
    names = [*CURVES, *sorted(found.keys() - CURVES.keys() - set(AXES))]
    return [name for name in names if np.isfinite(column(found, name)).any()]


def column(found: Columns, name: str) -> Float[ndarray, " step"]:
    """A logged figure; NaN where it was not logged."""
    n_steps = len(next(iter(found.values())))
    return found.get(name, np.full(n_steps, np.nan))


def _curve(found: Columns, name: str) -> Curve:
    x, y = column(found, "tokens"), column(found, name)
    return Curve(title(name), x, y, log=name in LOG, says=lambda value: _said(value, name))


def _last(found: Columns, name: str) -> str:
    value = float(column(found, name)[-1])
    return _said(value, name) if np.isfinite(value) else ""


def _said(value: float, name: str) -> str:
    if name == "lr":
        return f"{value:.2g}".replace("-", MINUS)
    if name in {"dead", "tokens_per_second"}:
        return short_count(round(value))
    return activation(value)
