"""The data sets that options of tasks ask for, and how each is measured."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from saelab.activations.corpus import load_corpus
from saelab.activations.open_text import check_text
from saelab.config import UsageError
from saelab.evaluation.tasks import sae_probes
from saelab.evaluation.tasks.data import LabelledTexts, joined, read_labelled
from saelab.evaluation.tasks.entities import Entities, kinds_of_entities, read_entities
from saelab.evaluation.tasks.options import DEFAULT_RULES, TaskOptions, TaskSetting
from saelab.evaluation.tasks.pooled import TextReader
from saelab.evaluation.tasks.questions import Questions, read_questions
from saelab.evaluation.tasks.ravel import Ravel, measure_ravel
from saelab.evaluation.tasks.scr import Scr, measure_scr
from saelab.evaluation.tasks.sparse_probing import probe_data, probing_of
from saelab.evaluation.tasks.tpp import Tpp, measure_tpp
from saelab.evaluation.tasks.unlearning import Subjects, Unlearning, measure_unlearning


@dataclass(frozen=True)
class TaskKind:
    """One kind of task.

    Attributes:
        result: the name of its measurement.
        whole: makes the result from the tasks by name.
        sources: the data sets that options ask for.
    """

    result: str
    whole: Callable[[dict[str, Any]], Any]
    sources: Callable[[TaskOptions], Iterator["DataSet"]]


@dataclass(frozen=True)
class DataSet:
    """A data set that was asked for.

    Attributes:
        read: reads it; what it returns has a name and a digest.
        setting: what its results depend on besides the data, as JSON values.
        measure: makes tasks by name from a reader and the data; `setting` and `asked` are given.
        skips: whether it is left out with a note if it cannot be measured, as one of many.
    """

    name: str
    read: Callable[[TextReader], LabelledTexts | Entities | Subjects]
    setting: dict[str, Any]
    measure: Callable[..., Mapping[str, Any]]
    skips: bool = False


Asked = dict[str, list[DataSet]]
"""The data sets of each kind of task."""


def check_data(options: TaskOptions) -> Asked:
    """The data sets of these options; own files are read, so that bad ones are refused early.

    Raises:
        UsageError: a file is bad, two have one name, or sae-probes is needed and not installed.
    """
    options.check()
    asked = {name: list(kind.sources(options)) for name, kind in KINDS.items()}
    for kind, found in asked.items():
        names = [each.name for each in found]
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise UsageError(
                f"--{kind} names two data sets {twice[0]!r}, and results are kept by name; rename "
                "a file."
            )
    return asked


def _labelled(
    kind: str, measure: Callable[..., Mapping[str, Any]], options: TaskOptions
) -> Iterator[DataSet]:
    """The data sets of a kind that reads labelled texts."""
    for spec in getattr(options, kind):
        if spec == sae_probes.NAME and kind == "probe":
            data = sae_probes.package_data()
            for name in sae_probes.task_names(data)[: options.first]:
                read = partial(sae_probes.read_task, data, name)
                yield _by_rules(name, read, measure, options, packaged=True, skips=True)
            continue
        parts = spec.split("+") if kind == "scr" else [spec]
        texts = [_read(part, kind, options, alone=len(parts) == 1) for part in parts]
        if len(texts) > 2:
            raise UsageError(f"--scr {spec} names {len(texts)} data sets; give one or two.")
        whole = joined(*texts) if len(texts) == 2 else texts[0]
        for label in whole.values:
            whole.classes(label)
        packaged = all(part.startswith(f"{sae_probes.NAME}:") for part in parts)
        yield _by_rules(whole.name, lambda whole=whole: whole, measure, options, packaged=packaged)


def _by_rules(
    name: str,
    read: Callable[[], LabelledTexts],
    measure: Callable[..., Mapping[str, Any]],
    options: TaskOptions,
    *,
    packaged: bool,
    skips: bool = False,
) -> DataSet:
    rules_name, rules = options.rules_for(packaged=packaged)
    usual = rules_name == DEFAULT_RULES[packaged]

    def named(_: TextReader) -> LabelledTexts:
        data = read()
        # Results by other rules than usual stand beside the usual ones.
        return data if usual else replace(data, name=f"{data.name} ({rules_name})")

    setting = TaskSetting(rules_name, rules.length, rules.n_train, rules.n_test, options.seed)
    return DataSet(name, named, setting.values(), partial(measure, rules=rules), skips)


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


def _entities(options: TaskOptions) -> Iterator[DataSet]:
    """The kinds of entities in RAVEL's folder."""
    if options.ravel is None:
        return
    setting = {"n_pairs": options.n_pairs, "seed": options.seed}
    for kind in kinds_of_entities(options.ravel):
        data = read_entities(options.ravel, kind, options.attributes)
        yield DataSet(kind, lambda _, data=data: data, setting, measure_ravel)


def _subjects(options: TaskOptions) -> Iterator[DataSet]:
    """What is to be forgotten."""
    if options.unlearn is None:
        return
    texts = [text for text in (options.forget_text, options.keep_text) if text is not None]
    for text in texts:
        check_text(text)
    forget, *others = map(read_questions, (options.unlearn, *options.keep))
    names = [each.subject for each in (forget, *others)]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise UsageError(f"Two files have questions about {twice[0]!r}; rename one.")
    setting = {
        "clamp": list(options.clamp), "n_text_tokens": options.n_text_tokens, "seed": options.seed,
    }  # fmt: skip
    yield DataSet(
        forget.subject,
        partial(_with_texts, options, texts, forget, others),
        setting,
        measure_unlearning,
    )


def _with_texts(
    options: TaskOptions,
    texts: list[str],
    forget: Questions,
    others: list[Questions],
    reader: TextReader,
) -> Subjects:
    run, lm = reader.host.run, reader.host.lm
    length = None if run is None else run.context_length
    forget_text, ordinary = (
        load_corpus(
            source, lm, split="all", context_length=length, max_tokens=options.n_text_tokens
        )
        for source in texts
    )
    return Subjects(forget, others, (forget_text, ordinary))


KINDS = {
    "probe": TaskKind("task_probing", probing_of, partial(_labelled, "probe", probe_data)),
    "tpp": TaskKind("task_tpp", Tpp, partial(_labelled, "tpp", measure_tpp)),
    "scr": TaskKind("task_scr", Scr, partial(_labelled, "scr", measure_scr)),
    "ravel": TaskKind("task_ravel", Ravel, _entities),
    "unlearn": TaskKind("task_unlearning", Unlearning, _subjects),
}
