"""Pictures of steering."""

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from saelab.figures.style import NEUTRAL, Palette, dressed, word

if TYPE_CHECKING:
    from saelab.analysis.steering.dose import DoseResponse
    from saelab.analysis.steering.records import SteeringScores
    from saelab.analysis.steering.success import Success

N_WORDS = 6
N_PARTS = 5


def score_figure(scores: "SteeringScores", palette: Palette = NEUTRAL) -> go.Figure:
    """Input score against output score, one point per latent; negative poles are diamonds.

    Latents without an input score (too few examples) are left of zero.
    """
    x = np.where(np.isnan(scores.input), -0.06, scores.input)
    negative = scores.sign < 0
    points = go.Scattergl(
        x=x.tolist(),
        y=scores.output.tolist(),
        text=[_hover(scores, row) for row in range(len(scores))],
        customdata=scores.latent.tolist(),
        mode="markers",
        hovertemplate="%{text}<extra></extra>",
        marker={
            "color": np.where(negative, palette.negative, palette.positive).tolist(),
            "symbol": np.where(negative, "diamond", "circle").tolist(),
            "size": 7,
            "opacity": 0.6,
        },
    )
    figure = go.Figure(points)
    figure.update_xaxes(
        title="input score: it fires on what it promises (left of 0: too few examples)",
        range=[-0.1, 1.04],
    )
    figure.update_yaxes(title="output score: added, the model says it")
    return dressed(figure, palette, height=420)


def _hover(scores: "SteeringScores", row: int) -> str:
    pole = "" if scores.sign[row] > 0 else ", negative pole"
    promises, fires = (
        ", ".join(word(token) for token in scores.words(tokens)[:N_WORDS])
        for tokens in (scores.lens[row], scores.peaks[row])
    )
    return (
        f"latent {scores.latent[row]}{pole}<br>promises {promises}<br>fires on {fires}"
        f"<br>input {scores.input[row]:.2f}, output {scores.output[row]:.3f}"
    )


def success_figure(success: "Success", palette: Palette = NEUTRAL) -> go.Figure:
    """Success beyond the plain model's against output score, with means over fifths of the latents.

    The bars are 95 % intervals of the means.
    """
    output = np.array([found.output for found in success.latents])
    gain = np.array([found.success - found.plain_success for found in success.latents])
    points = go.Scattergl(
        x=output.tolist(),
        y=gain.tolist(),
        text=[f"latent {found.latent}, factor {found.factor:g}" for found in success.latents],
        customdata=[found.latent for found in success.latents],
        mode="markers",
        name="a latent",
        hovertemplate="%{text}<br>output %{x:.3f}, %{y:+.2f} promised tokens<extra></extra>",
        marker={"color": palette.positive, "size": 6, "opacity": 0.45},
    )
    order = np.argsort(output, kind="stable")
    parts = [part for part in np.array_split(order, N_PARTS) if len(part)]
    errors = [1.96 * float(gain[part].std()) / len(part) ** 0.5 for part in parts]
    means = go.Scatter(
        x=[float(output[part].mean()) for part in parts],
        y=[float(gain[part].mean()) for part in parts],
        error_y={"type": "data", "array": errors, "color": palette.negative},
        mode="lines+markers",
        name="mean of a fifth",
        line={"color": palette.negative, "width": 2},
        marker={"symbol": "diamond", "size": 9},
        hovertemplate="output %{x:.2f}: %{y:+.2f}<extra>mean of a fifth</extra>",
    )
    figure = go.Figure([points, means])
    figure.update_xaxes(title="output score")
    figure.update_yaxes(title="promised tokens a text, beyond the plain model's")
    return dressed(figure, palette, height=420)


def dose_figure(dose: "DoseResponse", palette: Palette = NEUTRAL) -> go.Figure:
    """What rises (the target) and what it costs (KL, repetition, perplexity), over the strength.

    A dotted line marks the change's own strength.
    """
    panels: tuple[tuple[str, Any, str], ...] = (
        (f"log p({word(dose.target)})", dose.target_log_prob, palette.positive),
        ("KL from the plain model, nats", dose.kl, palette.negative),
        ("repeated bigrams", dose.repetition, palette.negative),
        ("perplexity under the plain model", dose.perplexity, palette.negative),
    )
    figure = make_subplots(
        rows=2,
        cols=2,
        shared_xaxes=True,
        subplot_titles=[title for title, _, _ in panels],
        vertical_spacing=0.16,
        horizontal_spacing=0.12,
    )
    for place, (_, values, colour) in enumerate(panels):
        curve = go.Scatter(
            x=list(dose.strengths),
            y=list(values),
            mode="lines+markers",
            line={"color": colour, "width": 2},
            hovertemplate="strength %{x:g}: %{y:.3g}<extra></extra>",
            showlegend=False,
        )
        figure.add_trace(curve, row=place // 2 + 1, col=place % 2 + 1)
    figure.add_vline(x=dose.change.amount, line={"color": palette.ink, "width": 1, "dash": "dot"})
    figure.update_yaxes(type="log", row=2, col=2)
    for col in (1, 2):
        figure.update_xaxes(title=f"strength ({dose.change.unit})", row=2, col=col)
    return dressed(figure, palette, height=440, top=36)
