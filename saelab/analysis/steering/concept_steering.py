"""Steering toward known concepts: latents, chosen in several ways, against difference-in-means.

A direction steers well if it moves probability to the tokens that express the concept and changes
little else. Each direction is added, with the SAE's error kept, at the last position of prompts
that call for the opposite. Its length is chosen so that all directions have the same KL from the
plain model.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from pydantic import Field
from torch import Tensor

from saelab.analysis.steering.budget import Steered, Trial
from saelab.analysis.steering.concepts import CONCEPTS, Concept, concept_prompts
from saelab.analysis.steering.edits import with_maxima
from saelab.analysis.steering.records import HIGH_OUTPUT, SteeringScores
from saelab.config import Config
from saelab.console import progress
from saelab.evaluation.detectors import DetectorFirings, Scores, score_label, sort_events
from saelab.host.host import Host
from saelab.host.text import corpus_of, stream
from saelab.lm.protocol import LanguageModel
from saelab.sae.decoder import atoms_of
from saelab.training.run import Run
from saelab.types import SparseCodes


class ConceptOptions(Config):
    """How concept steering is measured."""

    n_prompts: int = Field(default=40, gt=0)
    """Held-out prompts per concept."""
    n_tokens: int = Field(default=40_000, gt=0)
    """Tokens of training text for choosing latents and computing means."""
    n_pool: int = Field(default=10, gt=0)
    """Candidate latents per concept: the best detectors of its label by F1."""
    n_random: int = Field(default=3, gt=0)
    """Number of random active latents, as a control."""
    budget: float = Field(default=1.0, gt=0)
    """KL(plain || steered) at the steered position, in nats, averaged over the prompts."""
    seed: int = 0
    """Decides prompts and random latents."""


@dataclass(frozen=True)
class Candidate:
    """A latent that detects a concept's label: its F1, its scores, and its effect."""

    concept: str
    latent: int
    sign: int
    f1: float
    auroc: float
    input: float | None
    output: float
    steered: Steered


@dataclass(frozen=True)
class ConceptRow:
    """One method on one concept; `latent` is None if the method is not a single latent."""

    concept: str
    method: str
    latent: int | None
    sign: int
    steered: Steered


@dataclass(frozen=True)
class ConceptSteering:
    """Results of all concepts and methods.

    Attributes:
        rows: the effect of each method's choice; a filter that keeps no candidate has no row.
        candidates: the best detectors of each concept, best first.
        plain: per concept, the probability that the plain model gives its tokens.
        ideal: per concept, the largest gain that any distribution can have at the same KL on every
            prompt.
    """

    rows: list[ConceptRow]
    candidates: list[Candidate]
    plain: dict[str, float]
    ideal: dict[str, float]

    def mean_gain(self) -> dict[str, tuple[float, int]]:
        """The mean gain of each method, and the number of concepts behind it."""
        methods = dict.fromkeys(row.method for row in self.rows)
        gains = {m: [r.steered.gain for r in self.rows if r.method == m] for m in methods}
        return {method: (float(np.mean(values)), len(values)) for method, values in gains.items()}

    def values(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@torch.no_grad()
def concept_steering(
    run: Run,
    lm: LanguageModel,
    scores: SteeringScores,
    options: ConceptOptions | None = None,
    *,
    concepts: Sequence[Concept] = CONCEPTS,
) -> ConceptSteering:
    """Every method on each of `concepts`, at equal KL.

    Raises:
        UsageError: the model is not the shipped one, or not the run's.
    """
    options = options or ConceptOptions()
    prompts = concept_prompts(lm, options.n_prompts, seed=options.seed, concepts=concepts)
    host = with_maxima(Host.of_run(run, lm))
    evidence = _read(run, lm, host, options)
    result = ConceptSteering([], [], {}, {})
    with progress("Concepts", len(concepts), "concepts") as bar:
        for concept in concepts:
            trial = Trial.of(host, prompts[concept.name], options.budget, evidence.rms_norm)
            pool, rows = _run_concept(trial, concept, evidence, scores, options)
            result.candidates.extend(pool)
            result.rows.extend(rows)
            result.plain[concept.name] = float(trial.plain_mass.mean())
            result.ideal[concept.name] = trial.ideal_gain()
            bar.advance(1)
    return result


@dataclass(frozen=True)
class _Evidence:
    """Activations at the site that the SAE writes, with codes and labels, of training text."""

    x: Float[Tensor, "row d_in"]
    events: DetectorFirings
    labels: dict[str, Bool[ndarray, " row"]]

    @property
    def rms_norm(self) -> float:
        return float(self.x.pow(2).sum(dim=1).mean().sqrt())

    def difference_in_means(self, concept: Concept) -> Float[Tensor, " d_in"]:
        """mean(x where the concept holds) - mean(x where its opposite holds)."""
        there = self.labels[concept.label]
        absent = [self.labels[name] for name in concept.against] or [~there]
        elsewhere = np.any(absent, axis=0) & ~there
        holds, opposite = (torch.from_numpy(rows).to(self.x.device) for rows in (there, elsewhere))
        return self.x[holds].mean(dim=0) - self.x[opposite].mean(dim=0)


def _read(run: Run, lm: LanguageModel, host: Host, options: ConceptOptions) -> _Evidence:
    corpus = corpus_of(run, lm, "train")
    x, codes, labels = [], [], []
    for batch in stream(host, corpus, n_tokens=options.n_tokens, batch_size=32):
        x.append(batch.wanted)
        codes.append(host.sae.encode(batch.x))
        labels.append(batch.labels())
    table = np.concatenate(labels)
    return _Evidence(
        torch.cat(x),
        sort_events(SparseCodes.stack(codes)),
        {name: table[:, column] for column, name in enumerate(corpus.label_names)},
    )


@dataclass(frozen=True)
class _Chooser:
    """Chooses among the candidate latents of one concept."""

    trial: Trial
    concept: Concept
    events: DetectorFirings
    found: Scores
    scores: SteeringScores

    def candidate(self, position: int) -> Candidate:
        """A detector's latent, steered."""
        latent, sign = self.events.latent(position)
        row = self.scores.row(latent, sign)
        return Candidate(
            concept=self.concept.name,
            latent=latent,
            sign=sign,
            f1=float(self.found.f1[position]),
            auroc=float(self.found.auroc[position]),
            input=None if np.isnan(self.scores.input[row]) else float(self.scores.input[row]),
            output=float(self.scores.output[row]),
            steered=self.trial.at_budget(sign * atoms_of(self.trial.host.sae, latent)),
        )

    def pool(self, n: int) -> list[Candidate]:
        """The best detectors of the concept by F1, best first."""
        best = np.argsort(-self.found.f1, kind="stable")[:n]
        return [self.candidate(position) for position in best.tolist()]

    def best_lens(self) -> Candidate:
        """Of all active latents, the one that raises the concept's tokens most.

        Of several, the one with the highest output score.
        """
        says = self.trial.prompts.says.cpu().numpy()
        rows = [self.scores.row(*self.events.latent(i)) for i in range(len(self.events.detectors))]
        promised = says[self.scores.lens[rows]].sum(axis=1)
        return self.candidate(int(np.lexsort((self.scores.output[rows], promised))[-1]))


def _run_concept(
    trial: Trial,
    concept: Concept,
    evidence: _Evidence,
    scores: SteeringScores,
    options: ConceptOptions,
) -> tuple[list[Candidate], list[ConceptRow]]:
    """One concept's candidates, and the result of each method."""
    found = score_label(evidence.events, evidence.labels[concept.label])
    chooser = _Chooser(trial, concept, evidence.events, found, scores)
    pool = chooser.pool(options.n_pool)
    chosen = {
        "latent: best F1": pool[0],
        "latent: best AUROC": chooser.candidate(int(found.auroc.argmax())),
        "latent: best input score": max(pool, key=lambda c: -1 if c.input is None else c.input),
        "latent: best F1 with high output score": next(
            (c for c in pool if c.output >= HIGH_OUTPUT), None
        ),
        "latent: best output score": max(pool, key=lambda c: c.output),
        "latent: promises the concept": chooser.best_lens(),
    }
    rows = [
        ConceptRow(concept.name, method, c.latent, c.sign, c.steered)
        for method, c in chosen.items()
        if c is not None
    ]
    others = {
        "difference in means": trial.at_budget(evidence.difference_in_means(concept)),
        "random latents": _random(trial, evidence, options),
    }
    rows += [ConceptRow(concept.name, method, None, 1, done) for method, done in others.items()]
    return pool, rows


def _random(trial: Trial, evidence: _Evidence, options: ConceptOptions) -> Steered:
    """The mean over random active latents."""
    generator = np.random.default_rng(options.seed)
    n = min(options.n_random, len(evidence.events.detectors))
    drawn = generator.choice(len(evidence.events.detectors), n, replace=False)
    effects = []
    for position in drawn.tolist():
        latent, sign = evidence.events.latent(position)
        effects.append(trial.at_budget(sign * atoms_of(trial.host.sae, latent)))
    columns = ([e.length for e in effects], [e.kl for e in effects], [e.gain for e in effects])
    return Steered(*(float(np.mean(column)) for column in columns))
