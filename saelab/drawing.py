"""`figure`: the picture of data; the data itself does not know `saelab.figures`."""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from saelab.config import UsageError
from saelab.extras import required

if TYPE_CHECKING:
    import plotly.graph_objects as go

FIGURES = {
    "saelab.training.run.Run": "training.run_figure",
    "saelab.evaluation.results.Evaluation": "evaluation.evaluation_figure",
    "saelab.evaluation.density.Density": "evaluation.density_figure",
    "saelab.evaluation.recovery.RecoveryResult": "evaluation.recovery_figure",
    "saelab.evaluation.mdl.DescriptionLength": "evaluation.description_length_figure",
    "saelab.evaluation.mdl_sweep.LengthCurve": "evaluation.length_curve_figure",
    "saelab.evaluation.absorption_tasks.Absorption": "evaluation.absorption_figure",
    "saelab.evaluation.set_results.SetEvaluation": "evaluation.set_figure",
    "saelab.evaluation.encoder_curves.EncoderCurves": "encoders.encoder_figure",
    "saelab.analysis.records.LatentRecord": "latent.latent_figure",
    "saelab.analysis.manifold.Manifold": "manifold.manifold_figure",
    "saelab.analysis.scoreboard.Tradeoff": "scoreboard.tradeoff_figure",
    "saelab.analysis.steering.records.SteeringScores": "steering.score_figure",
    "saelab.analysis.steering.success.Success": "steering.success_figure",
    "saelab.analysis.steering.dose.DoseResponse": "steering.dose_figure",
    "saelab.analysis.transport.records.SiteTransport": "transport.transport_figure",
    "saelab.analysis.sharing.records.Sharing": "sharing.sharing_figure",
    "saelab.analysis.attention.heads.HeadAttribution": "attention.heads_figure",
    "saelab.analysis.attention.dfa.DirectAttribution": "attention.attribution_figure",
    "saelab.analysis.attention.qk.ScorePairs": "attention.score_figure",
    "saelab.analysis.attention.studies.PrefixInduction": "attention.prefix_figure",
    "saelab.analysis.attention.studies.LatentFamily": "attention.families_figure",
    "saelab.analysis.attention.studies.HeadThemes": "attention.themes_figure",
    "saelab.analysis.circuits.graph_data.AttributionGraph": "circuits.circuit_figure",
    "saelab.bench.step.StepTimes": "bench.step_figure",
}
"""For each type, the function of `saelab.figures` that draws it. Both are names, so that drawing
imports neither."""


def figure(x: object, /, *given: object, **options: Any) -> "go.Figure":  # noqa: ANN401 - the figure's
    """Draw `x` (plotly) by its type; a list or a dict is drawn by the type of its content.

    Further arguments go to the drawing function, see `FIGURES`: `palette` to all of them, the
    prompt's tokens to a `DirectAttribution`.

    Raises:
        UsageError: `x` has no figure, or plotly is not installed.
    """
    if (name := FIGURES.get(_type(x))) is None:
        drawn = ", ".join(kind.rpartition(".")[2] for kind in FIGURES)
        raise UsageError(f"Nothing draws {_type(x)}; there are figures of {drawn}.")
    required("plotly")
    module, _, function = name.partition(".")
    return getattr(import_module(f"saelab.figures.{module}"), function)(x, *given, **options)


def drawn(x: object) -> bool:
    """Whether `figure` draws `x`."""
    return _type(x) in FIGURES


def _type(x: object) -> str:
    """The full name of the type of `x`, or of its first element."""
    while isinstance(x, (Mapping, list, tuple)) and x:
        x = next(iter(x.values() if isinstance(x, Mapping) else x))
    return f"{type(x).__module__}.{type(x).__qualname__}"
