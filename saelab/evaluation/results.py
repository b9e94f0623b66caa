"""The results of an evaluation, and their files."""

from dataclasses import asdict, dataclass, field
from typing import Any

from typing_extensions import TypedDict

from saelab.activations.corpus import Corpus
from saelab.config import UsageError
from saelab.evaluation.measurement import checked, measurements
from saelab.evaluation.options import ENCODED, EvaluateOptions
from saelab.evaluation.other_text import saved_as
from saelab.provenance import provenance
from saelab.training.run import Run

PLAIN = ("reconstruction", "downstream", "recovery")
"""Files that hold only figures; summary.json says how they were made."""


class Summary(TypedDict, total=False):
    """The content of summary.json, except how the evaluation was made."""

    skipped: dict[str, str]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation, all on text that no training saw.

    A result is an attribute with its measurement's name: `evaluation.density.dead`,
    `evaluation.reconstruction["fvu"]`. A result that was not asked for, or was skipped, is None;
    plain figures are then empty.

    Attributes:
        results: the results by name, see `measurements`.
        skipped: the reason, by name, for everything that could not be measured.
        seconds: the duration of each measurement, by name.
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
        """Everything as JSON values: one per measurement, `skipped` and `seconds`."""
        found = asdict(self)
        results = found.pop("results")
        return {m.name: results.get(m.name, m.absent) for m in measurements().values()} | found


def load_evaluation(run: Run, *, text: str | None = None) -> Evaluation:
    """The latest result of each measurement; on another text if one is named (see `saved_as`).

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


def place(run: Run, corpus: Corpus | None, options: EvaluateOptions) -> str | None:
    """Where results are saved below `evaluation/`: by another text, another encoder, or both."""
    text = None if corpus is None else saved_as(run, corpus)
    return "-".join(filter(None, (text, options.saved_as))) or None


def load_encoders(run: Run) -> dict[str, Evaluation]:
    """What was measured with other encoders on the run's own text, by their names."""
    found = sorted((run.path / "evaluation").glob(f"{ENCODED}*/"))
    return {path.name.removeprefix(ENCODED): load_evaluation(run, text=path.name) for path in found}


def save_evaluation(
    run: Run, result: Evaluation, options: EvaluateOptions, *, corpus: Corpus | None, device: str
) -> None:
    """Write `evaluation/NAME.json` in the run for everything that was measured.

    For another text than the run's own, or another encoder, the path is
    `evaluation/PLACE/NAME.json`, see `place`. summary.json says how this evaluation was made, what
    it skipped and how long it took. A later evaluation may measure less and leave files unchanged;
    these say themselves how they were made.
    """
    made = {
        "options": options.model_dump(mode="json"),
        "corpus": None if corpus is None else dict(corpus.facts),
        "sae_sha256": run.weights_sha256,
        "provenance": provenance(device=device),
    }
    values = asdict(result)
    files = values.pop("results")
    text = place(run, corpus, options)
    for name, figures in files.items():
        told = figures if name in PLAIN and text is None else {"made": made, **figures}
        run.save_evaluation(name, told, text=text)
    summary = {"made": made, "files": list(files), **values}
    run.save_evaluation("summary", summary, text=text)
