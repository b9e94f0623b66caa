"""RAVEL: one attribute of an entity changed, the others kept (arXiv 2402.17700; 2503.09532, 3.5).

What it measures: whether some latents hold one attribute of an entity, and nothing else. The model
answers prompts such as "Paris is in the country of". At the last token of the entity's name, the
latents of a mask get the values that they have for another entity (Tokyo); the others keep theirs,
and the reconstruction replaces the activation. Cause: how often the model then says the other
entity's value (Japan), if prompts ask for the mask's attribute. Isolation: how often it still says
the entity's own value, if they ask for another attribute. Disentanglement is the mean of both, mean
over attributes. The mask is learned: for each latent a sigmoid, whose temperature falls from 1 to
1e-4, with the loss of both aims on other entities (SAEBench's MDBM: Adam, rate 1e-3, two epochs).
Only prompts that the model answers right count.

What misleads: the reconstruction's error is dropped, as in SAEBench, so a poor SAE loses isolation
even with an empty mask. The printed bounds say what there is to gain: all latents exchanged (cause)
and none (isolation), and the whole activation exchanged, which shows whether the entity's token
still matters at this layer. Prompts are right if they begin with the value's whole words; RAVEL's
special rules for coordinates and time zones are not applied. No entity is fitted and scored, which
is harder than SAEBench's split of pairs, and of many entities SAEBench keeps the 500 best known.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.config import UsageError
from saelab.evaluation.measurement import Column, Measurement
from saelab.evaluation.tasks.entities import Entities, says
from saelab.evaluation.tasks.interchange import exchanged, learn_mask
from saelab.evaluation.tasks.known import (
    FIT_SHARE,
    N_SAID,
    Pair,
    halves_of,
    known_prompts,
    padded,
    pairs_of,
    text_of,
)
from saelab.evaluation.tasks.options import Cost, FigureWithInterval
from saelab.evaluation.tasks.pooled import TextReader
from saelab.evaluation.tasks.probes import interval, mean_over_tasks, wilson
from saelab.evaluation.tasks.summary import Headline
from saelab.lm.greedy import continue_greedily, of_one_length

LEAST_PAIRS = 10


@dataclass(frozen=True)
class RavelAttribute:
    """What a mask of latents does to one attribute.

    Attributes:
        n_fit, n_scored: pairs of prompts for this attribute.
        n_latents: latents in the mask.
        cause, isolation: shares of right answers, with intervals over pairs (Wilson).
        cause_all: cause with all latents exchanged.
        cause_whole: cause with the whole activation exchanged.
        isolation_none: isolation with no latent exchanged, which is what the reconstruction keeps.
    """

    n_fit: int
    n_scored: int
    n_latents: int
    cause: FigureWithInterval
    isolation: FigureWithInterval
    cause_all: float
    cause_whole: float
    isolation_none: float


@dataclass(frozen=True)
class RavelTask:
    """RAVEL on one kind of entity.

    Attributes:
        known: of each attribute, how many of the asked prompts the model answers right.
        left_out: the reason for each attribute that is not measured.
        cause, isolation, disentanglement: means over attributes.
    """

    setting: dict[str, Any]
    asked: str
    known: dict[str, list[int]]
    attributes: dict[str, RavelAttribute]
    left_out: dict[str, str]
    cause: FigureWithInterval
    isolation: FigureWithInterval
    disentanglement: FigureWithInterval
    cost: Cost


@dataclass(frozen=True)
class Ravel:
    """RAVEL; see `saelab.evaluation.tasks.ravel`."""

    tasks: dict[str, RavelTask]

    def headlines(self) -> Iterator[Headline]:
        """The disentanglement of each kind of entity."""
        for kind, task in self.tasks.items():
            every = [one.cause_all for one in task.attributes.values()]
            most = "cause, all latents", sum(every) / len(every)
            yield Headline("RAVEL", kind, "disentangled", task.disentanglement, most, task.cost)


def measure_ravel(
    reader: TextReader, data: Entities, *, asked: str, setting: dict[str, Any]
) -> dict[str, RavelTask]:
    """RAVEL on one kind of entity.

    Raises:
        UsageError: the SAE cannot write, or the model knows too little.
    """
    if not reader.host.replaceable:
        raise UsageError(f"{reader.host.name} writes no single site, and --ravel changes one.")
    costs: list[Cost] = []
    with reader.measured(costs):
        fit, scored, known, left_out = _pairs(reader, data, setting)
        if len(fit) < 2:
            why = " ".join(f"{name}: {reason}" for name, reason in left_out.items())
            raise UsageError(
                f"RAVEL needs two attributes of {data.name} that {reader.host.lm.info.name} knows, "
                f"and there {'is one' if fit else 'are none'}. {why}"
            )
        found = {
            attribute: _attribute(reader, attribute, fit, scored, setting["seed"])
            for attribute in fit
        }
    means = [
        mean_over_tasks([figure(one) for one in found.values()])
        for figure in (_cause, _isolation, lambda one: (_cause(one) + _isolation(one)) / 2)
    ]
    return {data.name: RavelTask(setting, asked, known, found, left_out, *means, cost=costs[0])}


def _cause(found: RavelAttribute) -> float:
    return found.cause.value


def _isolation(found: RavelAttribute) -> float:
    return found.isolation.value


ByAttribute = dict[str, list[Pair]]


def _pairs(
    reader: TextReader, data: Entities, setting: Mapping[str, Any]
) -> tuple[ByAttribute, ByAttribute, dict[str, list[int]], dict[str, str]]:
    """Pairs to fit and to score, what is known of each attribute, and what is left out."""
    fit, scored, known, left_out = {}, {}, {}, {}
    most, seed = setting["n_pairs"], setting["seed"]
    sizes = round(FIT_SHARE * most), most - round(FIT_SHARE * most)
    for attribute in data.templates:
        made, counts = [], [0, 0]
        for among, size in zip(halves_of(data, seed), sizes, strict=True):
            prompts, n = known_prompts(reader, data, attribute, among, size, seed)
            made.append(pairs_of(prompts, size, seed))
            counts = [counts[0] + len(prompts), counts[1] + n]
        known[attribute] = counts
        if min(map(len, made)) < LEAST_PAIRS:
            left_out[attribute] = (
                f"The model answers {counts[0]} of {counts[1]} prompts right, which makes "
                f"{len(made[0])} pairs of different values to fit and {len(made[1])} to score; "
                f"{LEAST_PAIRS} of each are needed: give more entities or templates."
            )
        else:
            fit[attribute], scored[attribute] = made
    return fit, scored, known, left_out


def _attribute(
    reader: TextReader, attribute: str, fit: ByAttribute, scored: ByAttribute, seed: int
) -> RavelAttribute:
    host, n_latents = reader.host, reader.host.sae.d_sae
    mask = learn_mask(host, fit[attribute], _others(fit, attribute, seed), seed=seed)
    cause, isolation = scored[attribute], _others(scored, attribute, seed)
    none, every = torch.zeros(n_latents), torch.ones(n_latents)

    def share(
        pairs: Sequence[Pair], weights: Tensor | None, wanted: Callable[[Pair], str]
    ) -> float:
        return _share(reader, pairs, weights, wanted)

    shares = [share(cause, mask, _source), share(isolation, mask, _base)]
    bounded = [
        FigureWithInterval(value, *wilson(value, len(pairs)))
        for value, pairs in zip(shares, (cause, isolation), strict=True)
    ]
    return RavelAttribute(
        len(fit[attribute]),
        len(cause),
        int(mask.sum()),
        *bounded,
        cause_all=share(cause, every, _source),
        cause_whole=share(cause, None, _source),
        isolation_none=share(isolation, none, _base),
    )


def _source(pair: Pair) -> str:
    return pair.source.value


def _base(pair: Pair) -> str:
    return pair.base.value


def _others(pairs: ByAttribute, attribute: str, seed: int) -> list[Pair]:
    """Pairs of the other attributes, mixed, as many as of this one."""
    mixed = [pair for name, own in pairs.items() if name != attribute for pair in own]
    order = torch.randperm(len(mixed), generator=torch.Generator().manual_seed(seed)).tolist()
    return [mixed[i] for i in order[: len(pairs[attribute])]]


def _share(
    reader: TextReader,
    pairs: Sequence[Pair],
    weights: Float[Tensor, " d_sae"] | None,
    wanted: Callable[[Pair], str],
) -> float:
    """How often the model says the wanted value after the exchange."""
    lm, right = reader.host.lm, 0
    tokens = [pair.base.tokens for pair in pairs]
    for places in of_one_length(tokens, reader.at_once(max(map(len, tokens)))):
        some = [pairs[i] for i in places]
        batch, _ = padded([pair.base.tokens for pair in some])
        said = continue_greedily(lm, batch, N_SAID, exchanged(reader.host, some, weights))
        reader.n_tokens += batch.numel() + said.numel()
        right += sum(says(text_of(lm, row), wanted(p)) for row, p in zip(said, some, strict=True))
    return right / len(pairs)


def _lines(found: Ravel) -> Iterator[tuple[str, ...]]:
    for kind, task in found.tasks.items():
        for name, one in task.attributes.items():
            yield (
                f"{kind}: {name}",
                f"{one.n_scored}",
                f"{one.n_latents}",
                interval(one.cause),
                interval(one.isolation),
                f"{one.cause_whole:.1%}",
                f"{one.cause_all:.1%}",
                f"{one.isolation_none:.1%}",
            )
        means = f"{task.cause.value:.1%}", f"{task.isolation.value:.1%}"
        yield f"{kind}: disentangled {task.disentanglement.value:.1%}", "", "", *means, "", "", ""


def _left_out(found: Ravel) -> Iterator[tuple[str, str]]:
    for kind, task in found.tasks.items():
        for attribute, reason in task.left_out.items():
            yield f"{kind}, {attribute}", reason


RAVEL = Measurement(
    "task_ravel",
    "Can one attribute of an entity be changed alone? (RAVEL, 100 % is best)",
    _lines,
    result=Ravel,
    suite="tasks",
    columns=(
        Column("entities: attribute", number=False, shared=True),
        Column("pairs", shared=True),
        Column("latents"),
        Column("cause, %", style="bold"),
        Column("isolation, %", style="bold"),
        Column("cause,\nactivation", shared=True),
        Column("cause, all\nlatents"),
        Column("isolation,\nno latent"),
    ),
    left_out=_left_out,
)
