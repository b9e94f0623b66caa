"""Whether a run's SAE does on its site what its release says; if not, the site is often wrong."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from saelab.config import UsageError
from saelab.evaluation.evaluate import evaluate
from saelab.evaluation.options import EvaluateOptions
from saelab.lm.protocol import LanguageModel
from saelab.training.run import Run

ABSURD_FVU = 0.7
"""No public SAE leaves so much of the variance of its own site; rows of another site do."""
SLACK_FVU, FACTOR = 0.15, 2.0
"""On another text an FVU is at most so much larger than stated, and FACTOR times it."""
L0_FACTOR = 3.0
"""On another text L0 is at most so many times larger or smaller than stated."""
WRONG = "site, layer or BOS handling is probably wrong"


@dataclass(frozen=True)
class SiteFigure:
    """One figure of the run beside what its release states.

    Attributes:
        name: `fvu`, `l0` or `ce`.
        here: measured on the run's text.
        stated: least and most of the release, or None.
        problem: what is odd about it, as half a sentence; None if nothing is.
    """

    name: str
    here: float
    stated: tuple[float, float] | None
    problem: str | None


def check_fit(run: Run, lm: LanguageModel, n_tokens: int) -> list[SiteFigure]:
    """FVU, L0 and the share of cross-entropy recovered on held-out text; nothing is saved.

    Raises:
        UsageError: the run was trained on arrays, or as for `evaluate`.
    """
    if run.on_arrays:
        raise UsageError(f"{run.path} is of arrays, which no text can be compared with.")
    options = EvaluateOptions(suite="core", n_tokens=n_tokens)
    found = evaluate(run, lm, options, save=False)
    stated = _stated(run.provenance().get("stated"))
    here = found.reconstruction | {"ce": found.downstream.get("ce_recovered")}
    return list(_fits(here, stated))


def _fits(
    here: Mapping[str, Any], stated: Mapping[str, tuple[float, float]]
) -> Iterator[SiteFigure]:
    for name in ("fvu", "l0", "ce"):
        if (value := here.get(name)) is None:
            continue
        span = stated.get(name)
        yield SiteFigure(name, float(value), span, _problem(name, float(value), span))


def _problem(name: str, here: float, stated: tuple[float, float] | None) -> str | None:
    if name == "fvu":
        if not here < ABSURD_FVU:
            return f"FVU {here:.3g} is more than any SAE leaves of its own site"
        if stated is not None and here > FACTOR * stated[1] + SLACK_FVU:
            return f"FVU {here:.3g} is far above the stated {stated[1]:.3g}"
    if name == "l0" and stated is not None:
        least, most = stated[0] / L0_FACTOR, stated[1] * L0_FACTOR
        if not least <= here <= most:
            return f"L0 {here:.3g} is far from the stated {stated[0]:g} to {stated[1]:g}"
    return None


def _stated(value: object) -> dict[str, tuple[float, float]]:
    """What the run's record says of its release; a damaged entry counts as none."""
    found: dict[str, tuple[float, float]] = {}
    for name, span in (value if isinstance(value, dict) else {}).items():
        if isinstance(span, list) and len(span) == 2 and all(type(v) in (int, float) for v in span):
            found[name] = float(span[0]), float(span[1])
    return found
