"""One pass over held-out rows, then all other measurements."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from saelab.config import UsageError
from saelab.console import progress
from saelab.evaluation.inputs import Batch, Inputs, language_model
from saelab.evaluation.measurement import Measurement, Streamed, measurements
from saelab.evaluation.options import EvaluateOptions
from saelab.evaluation.results import Evaluation
from saelab.evaluation.rows import Skipped


def measure_all(inputs: Inputs, batches: Iterator[Batch]) -> Evaluation:
    """Make every measurement of the suite that `inputs` allow; others are skipped by name.

    Args:
        inputs: the run, its model and its text.
        batches: the held-out rows, read batch by batch.

    Raises:
        UsageError: there are no rows.
    """
    asked = asked_for(inputs.options)
    problems = {m.name: m.problem(inputs) for m in asked}
    possible = [m for m in asked if problems[m.name] is None]
    skipped = {name: problem for name, problem in problems.items() if problem is not None}
    seconds: dict[str, float] = {}
    with _clock("held_out_text", seconds):
        streamed = _read(inputs, possible, batches)
    with progress("Measure", len(possible), "measurements") as bar:
        for m in possible:
            with _clock(m.name, seconds):
                result = _made(m, inputs, streamed)
            if isinstance(result, Skipped):
                skipped[m.name] = result.reason
            else:
                inputs.found[m.name] = result
            bar.advance(1, m.name.replace("_", " "))
    order = {m.name: skipped[m.name] for m in asked if m.name in skipped}
    return Evaluation(inputs.found, order, seconds)


def asked_for(options: EvaluateOptions) -> list[Measurement]:
    """The measurements of the suite; or those named, and those whose results they need.

    Raises:
        UsageError: there is none of a name.
    """
    known = {name: m for name, m in measurements().items() if m.suite != "tasks"}
    if not options.metrics:
        return [m for m in known.values() if options.suite in (m.suite, "full")]
    if unknown := [name for name in options.metrics if name not in known]:
        raise UsageError(f"There is no metric {unknown[0]!r}; there are {', '.join(known)}.")
    before = {name for metric in options.metrics for name in known[metric].after}
    return [m for name, m in known.items() if name in before | set(options.metrics)]


def _read(
    inputs: Inputs, possible: list[Measurement], batches: Iterator[Batch]
) -> dict[str, Streamed]:
    """The results of the streamed measurements, after all batches."""
    streamed = {m.name: m.stream(inputs) for m in possible if m.stream is not None}
    inputs.with_predictions = any(language_model in m.needs for m in possible if m.stream)
    n = 0
    with progress("Evaluate", inputs.options.n_tokens, "tokens") as bar:
        for batch in batches:
            inputs.sample.add(batch.rows)
            for one in streamed.values():
                one.update(batch)
            n += len(batch.rows)
            bar.advance(len(batch.rows))
    if not n:
        raise UsageError("The held-out text has no tokens to evaluate on; give more text.")
    return streamed


def _made(m: Measurement, inputs: Inputs, streamed: dict[str, Streamed]) -> Any:  # noqa: ANN401 - its own type
    if m.name in streamed:
        return streamed[m.name].results()
    assert m.measure is not None
    return m.measure(inputs)


@contextmanager
def _clock(name: str, seconds: dict[str, float]) -> Iterator[None]:
    started = perf_counter()
    yield
    seconds[name] = perf_counter() - started
