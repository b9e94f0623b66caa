"""First-letter absorption on the words of the model's vocabulary (arXiv 2409.14507, 2503.09532).

What it measures: whether the latent of a letter is silent on some words that begin with it,
because a latent of the word fires instead and carries the letter along. Each word is read after a
few solved examples ("tartan has the first letter: T"), at its own token, so it works with every
tokenizer. The formulas are those of `saelab.evaluation.absorption`: full absorption, and the
absorbed fraction.

What misleads: letters that the model does not know at this site (its probe's F1 below 0.6 on unseen
words) are left out, so compare SAEs on the same letters only. An SAE without a latent for a letter
seems not to absorb: its own latents then find the letter badly, so read their F1 too. SAEBench's
rules say the contrary of such an SAE (`letters_saebench`): compare figures of the same rules only.
Words are distinct without case and spaces, so no probe sees a word that is scored; SAEBench's own
code may see it in other case. As in SAEBench, a fifth of the words is scored.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from string import ascii_lowercase
from typing import Any

import numpy as np
import torch

from saelab.config import UsageError
from saelab.evaluation.absorption import (
    LabelInParts,
    TaskAbsorption,
    fit_task_probes,
    measure_task,
)
from saelab.evaluation.absorption_tasks import first_letter_tasks
from saelab.evaluation.measurement import Column, Measurement
from saelab.evaluation.probe import best_threshold, f1_score
from saelab.evaluation.rows import Rows, Skipped
from saelab.evaluation.tasks.letters_saebench import measure_by_saebench
from saelab.evaluation.tasks.options import Cost, FigureWithInterval
from saelab.evaluation.tasks.pooled import Prompt, TextReader
from saelab.evaluation.tasks.probes import PENALTIES, interval, mean_over_tasks
from saelab.evaluation.tasks.summary import Headline
from saelab.lm.protocol import LanguageModel
from saelab.sae.base import AbstractSAE

TEMPLATE = "{word} has the first letter: {letter}\n"
FIT_SHARE = 0.8
PREFIXES = 8
"""Different sets of solved examples; each word has one of them."""


@dataclass(frozen=True)
class LetterAbsorption:
    """First-letter absorption; see `saelab.evaluation.tasks.letters`.

    Attributes:
        setting: the rules (`saelab` or `saebench`), how many words, examples, and the seed.
        n_words: words read.
        tasks: the letters.
        left_out: the reason for each other letter.
        fraction, full: means over letters.
    """

    setting: dict[str, Any]
    asked: str
    n_words: int
    tasks: list[TaskAbsorption]
    left_out: dict[str, str]
    fraction: FigureWithInterval
    full: FigureWithInterval
    cost: Cost

    def headlines(self) -> Iterator[Headline]:
        """The means over letters, beside what says whether there is a letter to absorb."""
        n, rules = len(self.tasks), "" if self.setting.get("rules") != "saebench" else " (saebench)"
        letters = f"{n} letters{rules}"
        own = "own F1", sum(task.main_f1 for task in self.tasks) / n
        probe = "probe F1", sum(task.parts[""].probe_f1 for task in self.tasks) / n
        what = "absorbed in part", "absorbed fully"
        yield Headline(
            "letters", letters, what[0], self.fraction, own, self.cost, name=what[0] + rules
        )
        yield Headline("letters", letters, what[1], self.full, probe, name=what[1] + rules)


def measure_letters(reader: TextReader, *, asked: str, setting: dict[str, Any]) -> LetterAbsorption:
    """The absorption of every letter that enough words begin with.

    Raises:
        UsageError: no letter can be measured, or the SAE has no decoder rows.
    """
    host = reader.host
    costs: list[Cost] = []
    with reader.measured(costs):
        words = vocabulary_words(host.lm)
        chosen = _drawn(words, setting["n_words"], setting["seed"])
        rows = reader.ends(*_prompts(host.lm, words, chosen, setting), "Words")
        names = {ids: word for word, ids in words.items()}
        here, tasks, left_out = first_letter_tasks(
            rows, lambda i: names[i], setting["seed"], fit_share=FIT_SHARE
        )
        if isinstance(tasks, Skipped):
            raise UsageError(f"{host.lm.info.name}: {tasks.reason}")
        found, missing = RULES[setting["rules"]](here, host.sae, tasks, setting["seed"])
        left_out |= missing
    if not found:
        raise UsageError(
            f"No letter could be measured at {host.reads} of {host.lm.info.name}, e.g. "
            + " ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:1])
        )
    fraction, full = (
        mean_over_tasks([getattr(task.rate, key) for task in found]) for key in ("fraction", "full")
    )
    return LetterAbsorption(setting, asked, len(rows), found, left_out, fraction, full, costs[0])


def measure_by_saelab(
    rows: Rows, sae: AbstractSAE, tasks: Sequence[LabelInParts], seed: int
) -> tuple[list[TaskAbsorption], dict[str, str]]:
    """The absorption of each letter, and the reasons for those that have none."""
    del seed
    found: list[TaskAbsorption] = []
    left_out: dict[str, str] = {}
    fitted = fit_task_probes(rows, tasks, l2=_best_penalty(rows, tasks))
    for task, probes in zip(tasks, fitted, strict=True):
        result, reasons = measure_task(rows, sae, task, probes)
        found += [] if result is None else [result]
        if reasons:
            left_out[task.name] = next(iter(reasons.values()))
    return found, left_out


RULES = {"saelab": measure_by_saelab, "saebench": measure_by_saebench}


def _best_penalty(rows: Rows, tasks: Sequence[LabelInParts]) -> float:
    """The l2 of the best mean F1 on a fifth of the fitted rows, with probes of the others.

    Some thousand words are few for a probe of a wide site.
    """
    held = rows.fit & (torch.arange(len(rows)) % 5 == 0)
    others = replace(rows, fit=rows.fit & ~held)
    found = {}
    # The larger penalty wins a tie.
    for l2 in reversed(PENALTIES):
        f1 = 0.0
        for task, probes in zip(tasks, fit_task_probes(others, tasks, l2=l2), strict=True):
            scores = rows.wanted @ probes[""].direction + probes[""].bias
            answer = scores >= best_threshold(scores[others.fit], task.label[others.fit])
            f1 += f1_score(answer[held], task.label[held])
        found[l2] = f1
    return max(found, key=lambda l2: found[l2])


def vocabulary_words(lm: LanguageModel) -> dict[str, int]:
    """The tokens that are words of two or more letters a to z, by the word in lower case.

    Of tokens that differ only in case or a space before them, the first of a space and a lower
    case counts.
    """
    found: dict[str, tuple[tuple[bool, bool], int]] = {}
    for i in range(len(lm.tokenizer.table.names)):
        name = lm.tokenizer.token(i)
        bare = name.strip(" \t\n▁Ġ")
        if len(bare) < 2 or not (bare.isascii() and bare.isalpha()):
            continue
        rank = name == bare, bare != bare.lower()
        word = bare.lower()
        if word not in found or rank < found[word][0]:
            found[word] = rank, i
    special = set(lm.info.special_token_ids)
    return {word: i for word, (_, i) in found.items() if i not in special}


def _drawn(words: Mapping[str, int], most: int, seed: int) -> list[str]:
    drawing = random.Random(seed)
    chosen = []
    for letter in ascii_lowercase:
        own = sorted(word for word in words if word[0] == letter)
        chosen += own if len(own) <= most else drawing.sample(own, most)
    return chosen


def _prompts(
    lm: LanguageModel, words: Mapping[str, int], chosen: list[str], setting: dict[str, Any]
) -> tuple[list[Prompt], list[Prompt]]:
    """Prefixes of <bos> and solved examples of other words, and the words to read behind each."""
    drawing = random.Random(setting["seed"])
    others = sorted(set(words) - set(chosen)) or sorted(words)
    bos = [] if lm.info.bos_token_id is None else [lm.info.bos_token_id]
    prefixes = []
    for _ in range(PREFIXES):
        examples = drawing.sample(others, min(setting["n_examples"], len(others)))
        text = "".join(TEMPLATE.format(word=w, letter=w[0].upper()) for w in examples)
        ids = lm.tokenizer.encode(text) if text else []
        if lm.tokenizer.unknown_id is not None and lm.tokenizer.unknown_id in ids:
            raise UsageError(
                f"The tokenizer of {lm.info.name} does not know the words of the solved examples; "
                "give --n-examples 0."
            )
        prefixes.append(np.array([*bos, *ids], dtype=np.int64))
    tokens = np.array([words[word] for word in drawing.sample(chosen, len(chosen))], dtype=np.int64)
    return prefixes, np.array_split(tokens, PREFIXES)


def _lines(found: LetterAbsorption) -> Iterator[tuple[str, ...]]:
    for task in found.tasks:
        part = task.parts[""]
        yield (
            task.name,
            f"{task.main_f1:.2f} ({len(task.main)})",
            f"{task.rate.fraction:.1%}",
            f"{task.rate.full:.1%}",
            str(task.rate.n_rows),
            f"{part.probe_f1:.2f}",
        )
    yield f"mean of {len(found.tasks)}", "", interval(found.fraction), interval(found.full), "", ""


def _left_out(found: LetterAbsorption) -> Iterator[tuple[str, str]]:
    for letter, reason in found.left_out.items():
        yield f"letters, {letter}", reason


LETTERS = Measurement(
    "task_letters",
    "Do latents of words absorb first letters? (0 % is best)",
    _lines,
    result=LetterAbsorption,
    suite="tasks",
    columns=(
        Column("letter", number=False, shared=True),
        Column("own latents\nF1"),
        Column("absorbed\nin part, %", style="bold"),
        Column("fully, %", style="bold"),
        Column("words"),
        Column("probe\nF1", style="dim"),
    ),
    left_out=_left_out,
)
LETTERS_SAEBENCH = replace(
    LETTERS,
    name="task_letters_saebench",
    title="Do latents of words absorb first letters, by SAEBench's rules? (0 % is best)",
)
RESULTS = {"saelab": LETTERS.name, "saebench": LETTERS_SAEBENCH.name}
"""The name of the result by each of the rules; a run may hold both."""
