"""Unlearning: latents of a subject clamped, so that the model forgets it (2410.19278; 2503.09532).

What it measures: whether a subject can be taken away and the rest kept. Latents that fire on fewer
than a share of the tokens of an ordinary text are ranked by how often they fire on texts of the
subject. The first n are set to -size wherever they fire; the error of the reconstruction stays.
The model then answers multiple choice questions about the subject and about others, of those that
it answered right in every order of the choices (24 of four). The score is 1 - its accuracy on the
subject, in the best setting that leaves at least 99 % of the others right; 0 if none does.

What misleads: the best of all settings is taken on the questions that are scored, so few questions
give a high score by chance; read their number. A model that hardly knows the subject has nothing to
forget: guessing answers 1 question of 24 right in every order even less. Sizes are absolute, so
they fit one model's activations only (the default is SAEBench's for Gemma 2); --clamp sets others.
The questions are asked plainly, not through a chat template, and read by the answer's letter.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.activations.corpus import Corpus
from saelab.config import UsageError
from saelab.console import note, progress
from saelab.evaluation.measurement import Column, Measurement
from saelab.evaluation.tasks.clamping import SHARES, clamping, distinct_sets
from saelab.evaluation.tasks.options import Cost, FigureWithInterval
from saelab.evaluation.tasks.pooled import Prompt, TextReader
from saelab.evaluation.tasks.probes import wilson
from saelab.evaluation.tasks.questions import EditsOf, Questions, answers, prompts_for
from saelab.evaluation.tasks.summary import Headline
from saelab.formats.json_file import canonical_digest
from saelab.host.text import stream

KEPT = 0.99


@dataclass(frozen=True)
class Subjects:
    """What is to be forgotten, what is to be kept, and a text of each.

    Attributes:
        forget: questions about what is to be forgotten.
        others: questions about what is to be kept, one for each subject.
        texts: of what is to be forgotten, and an ordinary one.
    """

    forget: Questions
    others: Sequence[Questions]
    texts: tuple[Corpus, Corpus]

    @property
    def name(self) -> str:
        """The subject that is to be forgotten."""
        return self.forget.subject

    @property
    def digest(self) -> str:
        """sha256 (hex) of questions and texts."""
        every = [each.digest for each in (self.forget, *self.others)]
        return canonical_digest([every, [dict(text.facts) for text in self.texts]])


@dataclass(frozen=True)
class UnlearningPoint:
    """One setting, and how many of the known questions are still answered right.

    Attributes:
        share: latents that fire more often on the ordinary text are kept.
        n_latents: latents that are clamped; fewer than asked for if there are no more.
        forget, others: accuracy on the subject and on the others.
    """

    share: float
    n_latents: int
    size: float
    forget: float
    others: float


@dataclass(frozen=True)
class UnlearningTask:
    """Unlearning of one subject.

    Attributes:
        known: by subject, the questions that are answered right in every order, and all.
        points: every setting; those that clamp the same latents once, with the smallest share.
        best: the index of the setting that is scored; None if none keeps the others.
        score: 1 - accuracy on the subject; its interval is over questions (Wilson).
    """

    setting: dict[str, Any]
    asked: str
    known: dict[str, list[int]]
    points: list[UnlearningPoint]
    best: int | None
    score: FigureWithInterval
    cost: Cost


@dataclass(frozen=True)
class Unlearning:
    """Unlearning; see `saelab.evaluation.tasks.unlearning`."""

    tasks: dict[str, UnlearningTask]

    def headlines(self) -> Iterator[Headline]:
        """The score of each subject."""
        for name, task in self.tasks.items():
            n, every = task.known[name]
            known = f"known, of {every}", n / every
            yield Headline("unlearning", name, "forgotten", task.score, known, task.cost)


Asked = tuple[Prompt, int, int]
"""A prompt, its number of choices, and the index of the right one."""


def measure_unlearning(
    reader: TextReader, data: Subjects, *, asked: str, setting: dict[str, Any]
) -> dict[str, UnlearningTask]:
    """Unlearning of one subject.

    Raises:
        UsageError: the SAE cannot write, the model knows no question, or there is no such latent.
    """
    if not reader.host.replaceable:
        raise UsageError(f"{reader.host.name} writes no single site, and --unlearn changes one.")
    costs: list[Cost] = []
    with reader.measured(costs):
        known, counts = _known(reader, data)
        forget, ordinary = (_firing_share(reader, text, setting) for text in data.texts)
        points = _points(reader, known, data.name, (forget, ordinary), setting["clamp"])
    kept = [i for i, point in enumerate(points) if point.others >= KEPT]
    best = min(kept, key=lambda i: points[i].forget) if kept else None
    score = _score(None if best is None else points[best].forget, counts[data.name][0])
    return {data.name: UnlearningTask(setting, asked, counts, points, best, score, costs[0])}


def _score(accuracy: float | None, n: int) -> FigureWithInterval:
    if accuracy is None:
        return FigureWithInterval(0.0)
    low, high = wilson(accuracy, n)
    return FigureWithInterval(1 - accuracy, 1 - high, 1 - low)


def _known(
    reader: TextReader, data: Subjects
) -> tuple[dict[str, list[Asked]], dict[str, list[int]]]:
    """By subject, the questions that are answered right in every order, in the file's order."""
    known: dict[str, list[Asked]] = {}
    counts = {}
    every = (data.forget, *data.others)
    with progress("Questions", len(every), "subjects") as bar:
        for questions in every:
            rows = prompts_for(reader.host.lm, questions, every_order=True)
            asked = [(prompt, len(order)) for _, own in rows for prompt, order in own]
            said = iter(answers(reader, asked))
            known[questions.subject] = []
            for row, own in rows:
                right = [order[next(said)] == row.right for _, order in own]
                if all(right):
                    first = own[0][0], len(row.choices), row.right
                    known[questions.subject].append(first)
            counts[questions.subject] = [len(known[questions.subject]), len(questions.rows)]
            bar.advance(1)
    others = sum(len(own) for name, own in known.items() if name != data.name)
    if not known[data.name] or not others:
        what = data.name if not known[data.name] else "the other subjects"
        raise UsageError(
            f"{reader.host.lm.info.name} answers no question about {what} right in every order of "
            "its choices, so nothing can be forgotten or kept; give more questions or a model that "
            "knows them."
        )
    return known, counts


def _firing_share(
    reader: TextReader, text: Corpus, setting: Mapping[str, Any]
) -> Float[Tensor, " d_sae"]:
    """The share of the text's tokens on which each latent fires."""
    host, n = reader.host, 0
    fired = torch.zeros(host.sae.d_sae, dtype=torch.float64)
    most, source = setting["n_text_tokens"], str(text.facts.get("source"))
    batch_size = reader.at_once(text.context_length)
    with progress(f"Latents on {source}", most, "tokens") as bar:
        for batch in stream(host, text, n_tokens=most, batch_size=batch_size):
            codes = host.sae.encode_for(batch.x, batch.target)
            fired += codes.firing_counts().double().cpu()
            n += len(batch.x)
            reader.n_tokens += batch.tokens.numel()
            bar.advance(len(batch.x))
    if n < most:
        note(f"{source} has {n} of the {most} tokens asked for.")
    return fired / max(n, 1)


def _points(
    reader: TextReader,
    known: Mapping[str, list[Asked]],
    subject: str,
    shares: tuple[Tensor, Tensor],
    sizes: Sequence[float],
) -> list[UnlearningPoint]:
    found = []
    others = [question for name, own in known.items() if name != subject for question in own]
    chosen = distinct_sets(*shares)
    if not chosen:
        raise UsageError(
            f"Every latent that fires on the text about {subject} fires on more than "
            f"{SHARES[-1]:.0%} of the ordinary text's tokens, so none can be clamped."
        )
    settings = [(share, latents, size) for share, latents in chosen for size in sizes]
    with progress("Unlearning", len(settings), "settings") as bar:
        for share, latents, size in settings:
            edits = clamping(reader.host, latents, size)
            accuracy = [_accuracy(reader, own, edits) for own in (known[subject], others)]
            found.append(UnlearningPoint(share, len(latents), size, *accuracy))
            bar.advance(1)
    return found


def _accuracy(reader: TextReader, asked: Sequence[Asked], edits: EditsOf) -> float:
    said = answers(reader, [(prompt, n) for prompt, n, _ in asked], edits)
    right = [answer == each[2] for answer, each in zip(said, asked, strict=True)]
    return sum(right) / len(right)


def _lines(found: Unlearning) -> Iterator[tuple[str, ...]]:
    for name, task in found.tasks.items():
        for i, point in enumerate(task.points):
            score = f"{task.score.value:.1%}" if i == task.best else ""
            yield (
                name,
                f"{point.share:.1%}",
                f"{point.n_latents}",
                f"{point.size:g}",
                f"{point.forget:.1%}",
                f"{point.others:.1%}",
                score,
            )
        asked = ", ".join(f"{subject} {n} of {m}" for subject, (n, m) in task.known.items())
        yield f"known: {asked}", "", "", "", "", "", "" if task.best is not None else "0.0%"


UNLEARNING = Measurement(
    "task_unlearning",
    "Can a subject be forgotten alone? (unlearning, 100 % is best)",
    _lines,
    result=Unlearning,
    suite="tasks",
    columns=(
        Column("subject", number=False, shared=True),
        Column("fires on\nother text"),
        Column("latents"),
        Column("set to -"),
        Column("subject:\nright", style="bold"),
        Column("others:\nright", style="bold"),
        Column("score", style="bold"),
    ),
)
