"""Whether two runs began with the same weights, so that latents may match without learning."""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import streamlit as st
from jaxtyping import Bool, Float32
from numpy import ndarray

from feature_browser.data.catalogue import RunCard, key_of
from feature_browser.data.reading import stamp
from feature_browser.data.weights import DecoderRows, read_decoder, width
from feature_browser.draw.markup import Html, html
from feature_browser.draw.numbers import count, real
from feature_browser.pages.compare.correspondence import (
    ALIKE,
    KINDS,
    Correspondence,
    Side,
)
from feature_browser.pages.compare.job import Progress, WeightsFile, matching
from saelab.config import UsageError
from saelab.formats.tensor_header import read_tensor_header
from saelab.training.run import Run

CONFIG = "config.json"
MOST_NUMBERS = 2**27
"""Largest decoder that is drawn again, in numbers: half a gigabyte."""


@dataclass(frozen=True)
class Start:
    """How two runs with the same seed began.

    Attributes:
        seed: the seed of both.
        untrained: number of this run's latents that would match before any training.
        same: which of this run's latents have as their nearest the row that was already alike
            initially (cosine at least ALIKE).
        same_other: the same for the other run's latents.
        stayed: median cosine of this run's decoder rows to their initial values.
    """

    seed: int
    untrained: int
    same: Bool[ndarray, " latent"]
    same_other: Bool[ndarray, " latent"]
    stayed: float


def seeds(card: RunCard, other: RunCard) -> tuple[int, int] | None:
    """The seeds of both runs' random initial weights; None if a run did not start from such."""
    first, second = (
        run.config.get("seed") if run.n_tokens and not run.config.get("init_from") else None
        for run in (card, other)
    )
    return (first, second) if isinstance(first, int) and isinstance(second, int) else None


def same_start(card: RunCard, other: RunCard, found: Correspondence) -> Start | Progress | None:
    """What two runs with one seed share because of it; None if seeds differ, or it is unknown.

    The initial decoders are drawn again and matched as trained ones are: the first time, a page may
    have to look at its progress. Unknown are very large decoders, and those of unreadable
    configurations.
    """
    drawn = seeds(card, other)
    if drawn is None or drawn[0] != drawn[1]:
        return None
    before = untrained(card, other)
    if not isinstance(before, Correspondence):
        return before
    stamps = tuple(
        stamp(path) for run in (card, other) for path in (run.weights_path, run.path / CONFIG)
    )
    return _start(card, other, stamps, drawn[0], found, before)


def untrained(card: RunCard, other: RunCard) -> Correspondence | Progress | None:
    """The match of the two initial decoders, or its progress; None if they cannot be drawn."""
    if max(int(np.prod(width(run.weights_path))) for run in (card, other)) > MOST_NUMBERS:
        return None
    drawn_at = [stamp(run.path / CONFIG) for run in (card, other)]
    first, second = (
        WeightsFile(run.weights_path, at, partial(initial_decoder, run, at), initial=True)
        for run, at in zip((card, other), drawn_at, strict=True)
    )
    try:
        return matching(first, second)
    except UsageError:
        return None


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs={RunCard: key_of})
def _start(
    card: RunCard,
    other: RunCard,
    stamps: tuple[int, ...],
    seed: int,
    _found: Correspondence,
    _before: Correspondence,
) -> Start:
    first, second = (
        initial_decoder(run, at) for run, at in zip((card, other), stamps[1::2], strict=True)
    )
    trained = read_decoder(card.weights_path, signed=card.signed)
    stayed = np.abs((trained.rows * first.rows).sum(axis=1))
    return Start(
        seed,
        _before.this.counts()["matched"],
        _alike(first, second, _found.this),
        _alike(second, first, _found.other),
        float(np.median(stayed)),
    )


def beginning(
    found: Correspondence, start: Start | Progress | None, card: RunCard, other: RunCard
) -> Html:
    """Whether the runs began with the same weights, and which matches this may explain."""
    drawn = seeds(card, other)
    if drawn is None:
        text = (
            "One of them did not begin at random weights drawn here, so what shared initial "
            "weights explain cannot be told."
        )
        return html('<p class="sub">{t}</p>', t=text)
    if drawn[0] != drawn[1]:
        text = (
            f"They began at different random weights (seeds {drawn[0]} and {drawn[1]}): what they "
            "share, they learned."
        )
        return html('<p class="sub">{t}</p>', t=text)
    if isinstance(start, Progress):
        text = f"Both began with seed {drawn[0]}: the initial weights are being drawn and matched …"
        return html('<p class="sub">{t}</p>', t=text)
    if start is None:
        text = (
            f"Both began with seed {drawn[0]}, perhaps at the same weights: latents may be alike "
            "for that alone. Train one of them with another --seed to see what both learned."
        )
        return html('<p class="notice" role="status">{t}</p>', t=text)
    matched = found.this.kind == list(KINDS).index("matched")
    n_same, n = int((start.same & matched).sum()), int(matched.sum())
    if not start.untrained:
        text = (
            f"Both have seed {start.seed} but began at different weights, for their SAEs are drawn "
            "in other ways: what they share, they learned."
        )
        return html('<p class="sub">{t}</p>', t=text)
    return html(
        '<p class="notice" role="status">Both runs began at the same weights (seed {seed}): '
        "untrained, {untrained} of {all} latents would be matched. Of the {n} that are, <b>{same} "
        "are the very rows that began alike</b>, and {new} found each other from different ones. "
        "Rows of {name} have a median cosine of {stayed} to where they began. Train one of the two "
        "with another --seed to see what both learn.</p>",
        seed=start.seed, untrained=count(start.untrained), all=count(len(matched)), n=count(n),
        same=count(n_same), new=count(n - n_same), name=card.name, stayed=real(start.stayed),
    )  # fmt: skip


def _alike(own: DecoderRows, other: DecoderRows, side: Side) -> Bool[ndarray, " latent"]:
    cosine: Float32[ndarray, " latent"] = (own.rows * other.rows[side.nearest.row]).sum(axis=1)
    if own.signed or other.signed:
        cosine = np.abs(cosine)
    return (cosine >= ALIKE) & (side.nearest.cosine >= ALIKE)


@st.cache_resource(max_entries=4, show_spinner=False, hash_funcs={RunCard: repr})
def initial_decoder(card: RunCard, stamp: int) -> DecoderRows:
    """The decoder that the run's training began with."""
    del stamp  # part of the cache's key only
    import torch

    from saelab.training.untrained import untrained_sae

    d_sae, d_out = width(card.weights_path)
    read = read_tensor_header(card.weights_path).tensors.get("b_in")
    d_in = d_out if read is None else math.prod(read.shape)
    with torch.no_grad():
        rows = untrained_sae(Run(card.path).config, d_in, d_out).W_dec.float().numpy()
    if rows.shape != (d_sae, d_out):
        raise UsageError(f"{card.weights_path} is not of the size that its config.json says.")
    norms = np.linalg.norm(rows, axis=1)
    return DecoderRows(rows / np.maximum(norms, 1e-12)[:, None], norms, card.signed)
