"""Measuring tasks of a run, one after the other; each is saved as soon as it is measured."""

from dataclasses import asdict
from typing import Any

import torch

from saelab.config import UsageError
from saelab.console import note
from saelab.evaluation.measurement import measurements
from saelab.evaluation.tasks.letters import RESULTS, LetterAbsorption, measure_letters
from saelab.evaluation.tasks.options import TASKS, TaskOptions, option
from saelab.evaluation.tasks.pooled import TextReader
from saelab.evaluation.tasks.sources import KINDS, Asked, DataSet, TaskKind, check_data
from saelab.formats.json_file import canonical_digest
from saelab.host.host import Host
from saelab.lm.load import load_recorded_model
from saelab.lm.protocol import LanguageModel
from saelab.lock import writing
from saelab.provenance import provenance
from saelab.training.run import Run

VERSION = 1
"""Results of another version are measured again."""
SHOWN = 6
"""Most tasks of earlier calls that a note names."""


@torch.no_grad()
def measure_tasks(
    run: Run,
    lm: LanguageModel | None = None,
    options: TaskOptions | None = None,
    *,
    device: str | torch.device = "auto",
    asked: Asked | None = None,
) -> dict[str, Any]:
    """Measure tasks and save them in `evaluation/task_*.json` of the run; returns them by name.

    What was measured with the same options on the same data is not measured again, so the same
    command continues an interrupted one. `lm` is the run's model; if not given, it is loaded on
    `device`. `asked` are the options' data sets, if `check_data` has read them already.

    Raises:
        UsageError: the options or data are bad, the run was trained on arrays, or `lm` is not its
            model.
    """
    options = options or TaskOptions()
    options.check()
    if not options.any:
        raise UsageError(f"Got no task; give {', '.join(map(option, TASKS))}.")
    if run.on_arrays:
        raise UsageError(f"{run.path} was trained on arrays, and tasks need a language model.")
    asked = check_data(options) if asked is None else asked
    with writing(run.path):
        if lm is None:
            lm = load_recorded_model(run.model(), device=device)
        reader = TextReader(Host.of_run(run, lm), options.batch_size)
        if any((options.scr, options.tpp, options.letters, options.ravel, options.unlearn)):
            _check_decoder(reader.host)
        made = {
            "sae_sha256": run.weights_sha256,
            "provenance": provenance(device=str(lm.device)),
        }
        found: dict[str, Any] = {}
        for kind, of_kind in asked.items():
            if of_kind:
                name = KINDS[kind].result
                found[name] = _measure(run, reader, KINDS[kind], of_kind, made)
        if options.letters:
            setting = options.letters_setting()
            name = RESULTS[setting["rules"]]
            found[name] = _letters(run, reader, name, setting, made)
    return found


def _check_decoder(host: Host) -> None:
    if (problem := host.sae.config.decoder_problem) is not None:
        raise UsageError(f"Only --probe measures this SAE, as it has no decoder rows: {problem}.")


def _measure(
    run: Run, reader: TextReader, kind: TaskKind, of_kind: list[DataSet], made: dict[str, Any]
) -> Any:  # noqa: ANN401 - the kind's own result
    tasks = _earlier(run, kind.result)
    new: set[str] = set()
    for number, source in enumerate(of_kind, 1):
        try:
            data = source.read(reader)
            asked = canonical_digest({**source.setting, "data": data.digest, "version": VERSION})
            same = {n for n, task in tasks.items() if task.asked == asked and _of(n, data.name)}
            if same:
                new |= same
                continue
            found = source.measure(reader, data, asked=asked, setting=source.setting)
        except UsageError as error:
            if not source.skips:
                raise
            note(f"{source.name} is left out: {error}")
            continue
        if len(of_kind) > 1:
            note(f"{source.name}: {number} of {len(of_kind)} data sets.")
        new |= set(found)
        if any(_of(n, data.name) for n in tasks):
            note(f"{data.name} was measured before, on other data or settings; it is replaced.")
        tasks = {n: t for n, t in tasks.items() if not _of(n, data.name)} | dict(found)
        _save(run, kind.result, kind.whole(tasks), made)
    if not tasks:
        raise UsageError("None of the tasks could be measured.")
    _say_earlier(kind, sorted(set(tasks) - new))
    return kind.whole(tasks)


def _say_earlier(kind: TaskKind, earlier: list[str]) -> None:
    """Name the tasks that this call did not ask for, since means are over all of a run."""
    if earlier:
        shown = ", ".join(earlier[:SHOWN]) + (", ..." if len(earlier) > SHOWN else "")
        note(
            f"{kind.result} also holds {len(earlier)} tasks of earlier calls, which are shown and "
            f"averaged with the new ones: {shown}."
        )


def _of(name: str, data: str) -> bool:
    """Whether this task's name is of the data of this name."""
    return name == data or name.startswith(f"{data}: ")


def _letters(
    run: Run, reader: TextReader, name: str, setting: dict[str, Any], made: dict[str, Any]
) -> LetterAbsorption:
    asked = canonical_digest({**setting, "version": VERSION})
    earlier = _saved(run, name)
    if earlier is not None and earlier.asked == asked:
        return earlier
    found = measure_letters(reader, asked=asked, setting=setting)
    _save(run, name, found, made)
    return found


def _earlier(run: Run, name: str) -> dict[str, Any]:
    """The tasks of this kind that were measured with the run's present weights."""
    found = _saved(run, name)
    return {} if found is None else dict(found.tasks)


def saved_tasks(run: Run) -> dict[str, Any]:
    """The results of all kinds of tasks that the run holds, measured with its present weights.

    Raises:
        UsageError: a file is damaged.
    """
    names = [name for name, each in measurements().items() if each.suite == "tasks"]
    found = {name: _saved(run, name) for name in names}
    return {name: result for name, result in found.items() if result is not None}


def _saved(run: Run, name: str) -> Any | None:  # noqa: ANN401 - the kind's own result
    values = run.evaluation(name)
    if values is None or values.get("made", {}).get("sae_sha256") != run.weights_sha256:
        return None
    return measurements()[name].read(values, f"evaluation/{name}.json of {run.path}")


def _save(run: Run, name: str, result: Any, made: dict[str, Any]) -> None:  # noqa: ANN401
    run.save_evaluation(name, {"made": made, **asdict(result)})
