"""Values of a run's files, which may hold anything."""

from typing import Any

from saelab.config import UsageError
from saelab.training.run import Run

LARGEST = 1 << 53
"""Largest number of tokens or latents that a run can have."""


def evaluation_of(run: Run, name: str, problems: list[str]) -> dict[str, Any]:
    """A saved evaluation; empty if there is none, or it is damaged (see `problems`)."""
    try:
        values = run.evaluation(name)
    except UsageError as error:
        problems.append(str(error))
        return {}
    return values if isinstance(values, dict) else {}


def scores_of(recovery: dict[str, Any]) -> list[float]:
    """The F1 of every known feature's best latent, if the file has it."""
    features = recovery.get("features")
    rows = features if isinstance(features, list) else []
    found = [figure_of(row, "f1") for row in rows if isinstance(row, dict)]
    return [score for score in found if score is not None]


def figure_of(values: dict[str, Any], name: str) -> float | None:
    """A figure; None if the file has no such number."""
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # NaN is not below it either.
    return float(value) if abs(value) < LARGEST else None


def whole(value: object, least: int = 0) -> int | None:
    """A whole number >= `least`; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if least <= value < LARGEST else None


def count_of(run: Run, least: int, *names: str) -> int:
    """A whole number of the configuration; raises UsageError if it has none."""
    value = whole(option_of(run, *names), least)
    if value is None:
        raise UsageError(
            f"{run.path / 'config.json'} has no whole number from {least} on for {'.'.join(names)}."
        )
    return value


def option_of(run: Run, *names: str) -> Any:  # noqa: ANN401 - any JSON value
    """An entry of the configuration; raises UsageError if there is none."""
    value: Any = run.options
    for name in names:
        if not isinstance(value, dict) or name not in value:
            raise UsageError(f"{run.path / 'config.json'} has no {'.'.join(names)}.")
        value = value[name]
    return value
