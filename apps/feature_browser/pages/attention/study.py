"""Attributions of a text's latents, computed in the live model and kept as plain numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st
from jaxtyping import Float
from numpy import ndarray

from feature_browser.data.catalogue import RunCard
from feature_browser.data.reading import stamp
from feature_browser.live.chat import prompted
from feature_browser.live.model import live_run, lock_of
from feature_browser.pages.attention.trail import TrailStep
from saelab.analysis.circuits.nodes import Node
from saelab.config import UsageError
from saelab.lm.prompt import prompt_tokens

if TYPE_CHECKING:
    from saelab.analysis.circuits.frozen import Frozen

N_PARTS, N_PAIRS = 14, 10
Amounts = list[tuple[Node, float]]


@dataclass(frozen=True)
class Sources:
    """The sources of an attention latent's value.

    Attributes:
        layer: layer of the heads.
        table: contributions, in the latent's units.
        constant: the encoder's constant; table and constant sum to the value.
    """

    layer: int
    table: Float[ndarray, "source head"]
    constant: float


@dataclass(frozen=True)
class Parts:
    """The largest amounts by node; and the number and sum of the others."""

    rows: Amounts
    n_others: int
    others: float

    @classmethod
    def of(cls, amounts: Amounts, n: int = N_PARTS) -> "Parts":
        """The `n` largest amounts by magnitude; the others are summed."""
        ordered = sorted(amounts, key=lambda pair: -abs(pair[1]))
        left = ordered[n:]
        return cls(ordered[:n], len(left), sum(amount for _, amount in left))


@dataclass(frozen=True)
class Score:
    """Why a head attends from one token to another.

    Attributes:
        score: score before the softmax, the sum of all pairs.
        attention: attention after the softmax.
        pairs: query and key components with the largest parts of the score.
        n_pairs: total number of pairs.
    """

    layer: int
    head: int
    score: float
    attention: float
    pairs: list[tuple[Node, Node, float]]
    n_pairs: int


@dataclass(frozen=True)
class Study:
    """A latent at a token of a text.

    Attributes:
        tokens: the names of the text's tokens.
        value: the latent's activation.
        fires: the positions of the text where it fires, with its value.
        left_out: the positions where an SAE is not applied, by name.
        sources: sources of an attention latent.
        inputs: direct inputs of any other latent.
        parts: components of the picked source token.
        score: why the picked head attends there.
        pieces: the text, token by token (`TokenTable.pieces`), with `gap` between.
    """

    tokens: tuple[str, ...]
    step: TrailStep
    value: float
    fires: list[tuple[int, float]]
    left_out: dict[str, list[int]]
    sources: Sources | None = None
    inputs: Parts | None = None
    parts: Parts | None = None
    score: Score | None = None
    pieces: tuple[str, ...] = ()
    gap: str = ""


def prompt_ids(card: RunCard, prompt: str, *, chat: bool = False) -> tuple[int, ...]:
    """The tokens of a typed prompt, with `chat` after the model's chat template.

    Raises:
        UsageError: the model cannot be loaded, or does not read the prompt.
    """
    live = live_run(card)
    with lock_of(live.lm):
        return tuple(prompt_tokens(live.lm, prompted(live, prompt, chat=chat)))


def strongest(cards: Sequence[RunCard], ids: tuple[int, ...], sae: str, latent: int) -> int | None:
    """The position where the latent fires most on the text; None if it does not."""
    frozen = _frozen(_key(cards), ids, _cards=tuple(cards))
    fires = _fires(frozen, sae, latent)
    return max(fires, key=lambda pair: abs(pair[1]))[0] if fires else None


def study(
    cards: Sequence[RunCard],
    ids: tuple[int, ...],
    step: TrailStep,
    source: int | None,
    head: int | None,
) -> Study:
    """The attributions of a latent at a token of the text.

    Args:
        cards: the runs whose SAEs are put into the model.
        ids: the text.
        step: the latent; its SAE must be of one of the runs.
        source: the source token to decompose.
        head: the head whose attention is explained; default: the one with the largest contribution.

    Raises:
        UsageError: the model cannot be loaded or has no exact rule, or the latent does not fire
            there.
    """
    return _study(_key(cards), ids, step, source, head, _cards=tuple(cards))


def _key(cards: Sequence[RunCard]) -> tuple[tuple[str, int], ...]:
    return tuple((card.path.as_posix(), stamp(card.weights_path)) for card in cards)


# A frozen prompt holds the model's weights once more, in float64.
@st.cache_resource(max_entries=1, show_spinner="Running the model …")
def _frozen(
    key: tuple[tuple[str, int], ...], ids: tuple[int, ...], *, _cards: tuple[RunCard, ...]
) -> "Frozen":
    del key  # part of the cache's key only
    import torch

    from saelab.analysis.circuits.frozen import freeze

    lives = [(card.name, live_run(card)) for card in _cards]
    first = lives[0][1]
    if any(live.lm is not first.lm for _, live in lives):
        raise UsageError("These runs are of several language models; choose others beside it.")
    if not ids or max(ids) >= first.lm.info.d_vocab or len(ids) > first.lm.info.n_ctx:
        raise UsageError(
            f"The text of {len(ids)} tokens is not one that {first.lm.info.name} reads; collect "
            "the features again."
        )
    hosts = [replace(live, name=name) for name, live in lives]
    with lock_of(first.lm):
        return freeze(first.lm, hosts, torch.tensor(ids, device=first.lm.device))


@st.cache_data(max_entries=128, show_spinner=False)
def _study(
    key: tuple[tuple[str, int], ...],
    ids: tuple[int, ...],
    step: TrailStep,
    source: int | None,
    head: int | None,
    *,
    _cards: tuple[RunCard, ...],
) -> Study:
    from saelab.analysis.attention.dfa import OF_ATTENTION

    frozen = _frozen(key, ids, _cards=_cards)
    live = live_run(_cards[0])
    table = live.lm.tokenizer.table
    tokens, pieces = tuple(map(table.name, ids)), tuple(table.pieces(ids))
    if not step.position < len(ids):
        raise UsageError(
            f"Position {step.position} is not in the text, which has 0 to {len(ids) - 1}."
        )
    fires = _fires(frozen, step.sae, step.latent)
    left_out = {a.name: (~a.applies).nonzero()[:, 0].tolist() for a in frozen.actives}
    number = _number(frozen, step.sae)
    value = float(frozen.values[frozen.latent_index(number, step.latent, step.position)])
    active = frozen.actives[number]
    if active.place.kind not in OF_ATTENTION:
        inputs = _inputs(frozen, number, step)
        return Study(
            tokens, step, value, fires, left_out, inputs=inputs, pieces=pieces, gap=table.gap
        )
    sources = _sources(frozen, active.place.layer, step)
    study = Study(tokens, step, value, fires, left_out, sources, pieces=pieces, gap=table.gap)
    if source is None or not 0 <= source <= step.position:
        return study
    if head is None or not 0 <= head < sources.table.shape[1]:
        head = int(np.abs(sources.table[source]).argmax())
    parts = _parts(frozen, sources.layer, step, source)
    score = _score(frozen, sources.layer, head, (step.position, source))
    return replace(study, parts=parts, score=score)


def _number(frozen: "Frozen", sae: str) -> int:
    return next(i for i, active in enumerate(frozen.actives) if active.name == sae)


def _fires(frozen: "Frozen", sae: str, latent: int) -> list[tuple[int, float]]:
    codes = frozen.actives[_number(frozen, sae)].codes
    mine = codes.latent == latent
    return list(zip(codes.row[mine].tolist(), codes.values[mine].tolist(), strict=True))


def _sources(frozen: "Frozen", layer: int, step: TrailStep) -> Sources:
    from saelab.analysis.attention.dfa import direct_feature_attribution

    (found,) = direct_feature_attribution(frozen, layer, step.position, step.latent, step.sae)
    return Sources(layer, found.by_source_head.cpu().double().numpy(), found.constant)


def _parts(frozen: "Frozen", layer: int, step: TrailStep, source: int) -> Parts:
    from saelab.analysis.attention.recursive import source_attribution

    found = source_attribution(frozen, layer, step.position, step.latent, source, step.sae)
    return Parts.of(list(zip(found.nodes, found.by_node.tolist(), strict=True)))


def _inputs(frozen: "Frozen", number: int, step: TrailStep) -> Parts:
    from saelab.analysis.circuits.graph import direct_inputs
    from saelab.analysis.circuits.targets import latent_target

    return Parts.of(
        direct_inputs(frozen, latent_target(frozen, number, step.latent, step.position))
    )


def _score(frozen: "Frozen", layer: int, head: int, ends: tuple[int, int]) -> Score:
    from saelab.analysis.attention.qk import score_pairs

    dest, source = ends
    found = score_pairs(frozen, layer, head, dest, source)
    return Score(
        layer, head, found.score, found.pattern, found.top(N_PAIRS), found.products.numel()
    )
