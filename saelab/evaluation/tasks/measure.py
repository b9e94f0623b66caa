"""Measuring tasks of a run, one after the other; each is saved as soon as it is measured."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from saelab.config import UsageError
from saelab.console import note
from saelab.evaluation.measurement import measurements
from saelab.evaluation.tasks import sae_probes
from saelab.evaluation.tasks.data import LabelledTexts, joined, read_labelled
from saelab.evaluation.tasks.letters import LetterAbsorption, measure_letters
from saelab.evaluation.tasks.options import DEFAULT_RULES, TaskOptions, TaskRules, TaskSetting
from saelab.evaluation.tasks.pooled import TextReader
from saelab.evaluation.tasks.scr import Scr, measure_scr
from saelab.evaluation.tasks.sparse_probing import probe_data, probing_of
from saelab.evaluation.tasks.tpp import Tpp, measure_tpp
from saelab.files import sha256_file
from saelab.formats.json_file import canonical_digest
from saelab.host.host import Host
from saelab.lm.load import load_recorded_model
from saelab.lm.protocol import LanguageModel
from saelab.lock import writing
from saelab.provenance import provenance
from saelab.training.run import Run

VERSION = 1
"""Results of another version are measured again."""


@dataclass(frozen=True)
class DataSet:
    """A data set that was asked for.

    Attributes:
        read: reads it.
        packaged: whether it is of sae-probes.
        skips: whether it is left out with a note if it cannot be measured, as one of many.
    """

    name: str
    read: Callable[[], LabelledTexts]
    packaged: bool = True
    skips: bool = False


@dataclass(frozen=True)
class _TaskKind:
    """One kind of task: how one data set is measured, and how all become a result."""

    result: str
    measure: Callable[..., Mapping[str, Any]]
    whole: Callable[[dict[str, Any]], Any]


KINDS = {
    "probe": _TaskKind("task_probing", probe_data, probing_of),
    "tpp": _TaskKind("task_tpp", measure_tpp, Tpp),
    "scr": _TaskKind("task_scr", measure_scr, Scr),
}


Asked = dict[str, list[DataSet]]
"""The data sets of each kind of task."""


def check_data(options: TaskOptions) -> Asked:
    """The data sets of these options; own files are read, so that bad ones are refused early.

    Raises:
        UsageError: a file is bad, two have one name, or sae-probes is needed and not installed.
    """
    options.check()
    asked = {kind: list(sources(kind, options)) for kind in KINDS}
    for kind, found in asked.items():
        names = [each.name for each in found]
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise UsageError(
                f"--{kind} names two data sets {twice[0]!r}, and results are kept by name; rename "
                "a file."
            )
    return asked


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
    if run.on_arrays:
        raise UsageError(f"{run.path} was trained on arrays, and tasks need a language model.")
    asked = check_data(options) if asked is None else asked
    with writing(run.path):
        if lm is None:
            lm = load_recorded_model(run.model(), device=device)
        reader = TextReader(Host.of_run(run, lm), options.batch_size)
        if options.scr or options.tpp or options.letters:
            _check_decoder(reader.host)
        made = {
            "sae_sha256": sha256_file(run.weights),
            "provenance": provenance(device=str(lm.device)),
        }
        found: dict[str, Any] = {}
        for kind, of_kind in asked.items():
            if of_kind:
                name = KINDS[kind].result
                found[name] = _measure(run, reader, KINDS[kind], of_kind, options, made)
        if options.letters:
            found["task_letters"] = _letters(run, reader, options, made)
    return found


def _check_decoder(host: Host) -> None:
    if (problem := host.sae.config.decoder_problem) is not None:
        raise UsageError(f"Only --probe measures this SAE, as it has no decoder rows: {problem}.")


def sources(kind: str, options: TaskOptions) -> Iterator[DataSet]:
    """The data sets of one kind, see `check_data`."""
    for spec in getattr(options, kind):
        if spec == sae_probes.NAME and kind == "probe":
            data = sae_probes.package_data()
            for name in sae_probes.task_names(data)[: options.first]:
                yield DataSet(name, partial(sae_probes.read_task, data, name), skips=True)
            continue
        parts = spec.split("+") if kind == "scr" else [spec]
        texts = [_read(part, kind, options, alone=len(parts) == 1) for part in parts]
        if len(texts) > 2:
            raise UsageError(f"--scr {spec} names {len(texts)} data sets; give one or two.")
        whole = joined(*texts) if len(texts) == 2 else texts[0]
        for label in whole.values:
            whole.classes(label)
        packaged = all(part.startswith(f"{sae_probes.NAME}:") for part in parts)
        yield DataSet(whole.name, lambda whole=whole: whole, packaged=packaged)


def _read(spec: str, kind: str, options: TaskOptions, *, alone: bool) -> LabelledTexts:
    prefix = f"{sae_probes.NAME}:"
    if spec.startswith(prefix):
        if kind == "scr" and alone:
            raise UsageError(
                f"--scr {spec} has one label only; give two of its tables that share texts: "
                f"{prefix}FIRST+{prefix}SECOND."
            )
        return sae_probes.read_task(sae_probes.package_data(), spec.removeprefix(prefix))
    labels = [options.label_field]
    if kind == "scr" and alone:
        labels.append(options.second_label_field)
    return read_labelled(Path(spec), options.text_field, labels)


def _measure(
    run: Run,
    reader: TextReader,
    kind: _TaskKind,
    of_kind: list[DataSet],
    options: TaskOptions,
    made: dict[str, Any],
) -> Any:  # noqa: ANN401 - the kind's own result
    tasks = _earlier(run, kind.result)
    for number, source in enumerate(of_kind, 1):
        rules_name, rules = options.rules_for(packaged=source.packaged)
        setting = _setting(rules_name, rules, options)
        try:
            data = source.read()
            if rules_name != DEFAULT_RULES[source.packaged]:
                # Results by other rules than usual stand beside the usual ones.
                data = replace(data, name=f"{data.name} ({rules_name})")
            asked = canonical_digest({**setting, "data": data.digest, "version": VERSION})
            if any(task.asked == asked and _of(name, data) for name, task in tasks.items()):
                continue
            new = kind.measure(reader, data, rules, asked=asked, setting=setting)
        except UsageError as error:
            if not source.skips:
                raise
            note(f"{source.name} is left out: {error}")
            continue
        if len(of_kind) > 1:
            note(f"{source.name}: {number} of {len(of_kind)} data sets.")
        tasks = {n: t for n, t in tasks.items() if not _of(n, data)} | dict(new)
        _save(run, kind.result, kind.whole(tasks), made)
    if not tasks:
        raise UsageError("None of the tasks could be measured.")
    return kind.whole(tasks)


def _of(name: str, data: LabelledTexts) -> bool:
    """Whether this task's name is of this data."""
    return name == data.name or name.startswith(f"{data.name}: ")


def _setting(name: str, rules: TaskRules, options: TaskOptions) -> dict[str, Any]:
    setting = TaskSetting(name, rules.length, rules.n_train, rules.n_test, options.seed)
    return setting.values()


def _letters(
    run: Run, reader: TextReader, options: TaskOptions, made: dict[str, Any]
) -> LetterAbsorption:
    setting = {key: getattr(options, key) for key in ("n_words", "n_examples", "seed")}
    asked = canonical_digest({**setting, "version": VERSION})
    earlier = _saved(run, "task_letters")
    if earlier is not None and earlier.asked == asked:
        return earlier
    found = measure_letters(reader, asked=asked, setting=setting)
    _save(run, "task_letters", found, made)
    return found


def _earlier(run: Run, name: str) -> dict[str, Any]:
    """The tasks of this kind that were measured with the run's present weights."""
    found = _saved(run, name)
    return {} if found is None else dict(found.tasks)


def _saved(run: Run, name: str) -> Any | None:  # noqa: ANN401 - the kind's own result
    values = run.evaluation(name)
    if values is None or values.get("made", {}).get("sae_sha256") != sha256_file(run.weights):
        return None
    return measurements()[name].read(values, f"evaluation/{name}.json of {run.path}")


def _save(run: Run, name: str, result: Any, made: dict[str, Any]) -> None:  # noqa: ANN401
    run.save_evaluation(name, {"made": made, **asdict(result)})
