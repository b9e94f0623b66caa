"""The latents of two runs, matched: when a page asks, or while the reader chooses a run."""

import threading
from collections.abc import Sequence
from functools import partial

from feature_browser.data.catalogue import RunCard
from feature_browser.data.labels import LatentNames
from feature_browser.data.reading import decoder, stamp
from feature_browser.pages.compare.correspondence import Correspondence
from feature_browser.pages.compare.job import Progress, WeightsFile, is_short, matching
from feature_browser.pages.compare.places import cannot_match
from saelab.config import UsageError

AHEAD = 3
"""Runs whose latents are matched while the reader chooses one of them."""


def matched(card: RunCard, other: RunCard) -> Correspondence | Progress:
    """The correspondence of two runs' latents, or the progress of its computation."""
    return matching(*_sides(card, other))


def match_some(card: RunCard, others: Sequence[RunCard]) -> None:
    """Match a run's latents with those of the first others that can be chosen, beside the page.

    Only matches for which a page would wait are made, and the names that it shows are read.
    """
    by_name = sorted(others, key=lambda run: run.name)

    def work() -> None:
        done = 0
        for run in by_name:
            try:
                if done == AHEAD or cannot_match(card, run) or not is_short(*_sides(card, run)):
                    continue
                matched(card, run)
                LatentNames.of(run)
            except (UsageError, OSError, MemoryError):
                # The page of the two says it, if somebody asks.
                continue
            done += 1

    threading.Thread(target=work, daemon=True, name="compare-ahead").start()


def _sides(card: RunCard, other: RunCard) -> tuple[WeightsFile, WeightsFile]:
    first, second = (
        WeightsFile(run.weights_path, stamp(run.weights_path), partial(decoder, run))
        for run in (card, other)
    )
    return first, second
