"""What an evaluation found, and the files it is kept in."""

from dataclasses import asdict, dataclass, field
from typing import Any

from typing_extensions import TypedDict

from saelab.activations.corpus import Corpus
from saelab.config import UsageError
from saelab.evaluation.measurement import checked, measurements
from saelab.evaluation.options import EvaluateOptions
from saelab.evaluation.other_text import saved_as
from saelab.files import sha256_file
from saelab.provenance import provenance
from saelab.training.run import Run

PLAIN = ("reconstruction", "downstream", "recovery")
"""Files that hold their figures alone; how they were made stands in summary.json."""


class Summary(TypedDict, total=False):
    """What summary.json says beside how the evaluation was made."""

    skipped: dict[str, str]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """What was measured, all of it on text that no training saw.

    A result is an attribute by its measurement's name: `evaluation.density.dead`,
    `evaluation.reconstruction["fvu"]`. One that was not asked for, or that `skipped` has, is None;
    plain figures are then empty.

    Attributes:
        results: by name, see `measurements`.
        skipped: by name, one sentence for everything that could not be measured.
        seconds: by name, how long each part took.
    """

    results: dict[str, Any]
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - of the measurement's own type
        known = {} if name.startswith("_") else measurements()
        if name not in known:
            raise AttributeError(f"There is no measurement {name!r}.")
        return self.results.get(name, known[name].absent)

    def values(self) -> dict[str, Any]:
        """Everything as JSON has it: a value for every measurement, `skipped` and `seconds`."""
        found = asdict(self)
        results = found.pop("results")
        return {m.name: results.get(m.name, m.absent) for m in measurements().values()} | found


def load_evaluation(run: Run, *, text: str | None = None) -> Evaluation:
    """What was measured last of everything; of another text where one is named (see `saved_as`).

    A damaged file is among what was `skipped`, with the reason.

    Raises:
        UsageError: summary.json is damaged.
    """
    summary = run.evaluation("summary", text=text) or {}
    told = checked(Summary, summary, f"The summary of {run.path}")
    found = Evaluation({}, told.get("skipped", {}), told.get("seconds", {}))
    for name, measurement in measurements().items():
        try:
            values = run.evaluation(name, text=text)
            if values is not None:
                where = f"evaluation/{name}.json of {run.path}"
                found.results[name] = measurement.read(values, where)
        except UsageError as error:
            found.skipped[name] = str(error)
    return found


def save_evaluation(
    run: Run, result: Evaluation, options: EvaluateOptions, *, corpus: Corpus | None, device: str
) -> None:
    """Write `evaluation/NAME.json` in the run for everything that was measured.

    Of another text than the run's own, it is `evaluation/TEXT/NAME.json`, see `saved_as`.
    summary.json says how this evaluation was made, what it skipped and how long it took. Files that
    a later evaluation of fewer things leaves as they are say by themselves how they were made.
    """
    made = {
        "options": options.model_dump(mode="json"),
        "corpus": None if corpus is None else dict(corpus.facts),
        "sae_sha256": sha256_file(run.weights),
        "provenance": provenance(device=device),
    }
    values = asdict(result)
    files = values.pop("results")
    text = None if corpus is None else saved_as(run, corpus)
    for name, figures in files.items():
        told = figures if name in PLAIN and text is None else {"made": made, **figures}
        run.save_evaluation(name, told, text=text)
    summary = {"made": made, "files": list(files), **values}
    run.save_evaluation("summary", summary, text=text)
