"""All measurements of a run, in the tables that `saelab evaluate` prints.

torch is imported where the tables are made, so that the page can be drawn without it.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from feature_browser.data.catalogue import RunCard
from feature_browser.data.reading import stamp
from feature_browser.draw.markup import Html, joined
from feature_browser.draw.sections import section_table

FAITHFUL = ("amortisation", "reconstruction", "downstream")
"""The measurements of other encoders that are shown beside those of the SAE's own."""

if TYPE_CHECKING:
    from saelab.evaluation.report import Section


def measured(card: RunCard) -> Html:
    """The tables, and what could not be measured.

    Raises:
        UsageError: a file of the evaluation is damaged.
    """
    files = sorted(card.path.glob("evaluation/**/*.json"))
    stamps = tuple(stamp(path) for path in files)
    return joined(section_table(section) for section in _sections(card.path, card.name, stamps))


@st.cache_resource(max_entries=8, show_spinner="Reading what was measured …")
def _sections(path: Path, name: str, stamps: tuple[int, ...]) -> "list[Section]":
    from saelab.evaluation.report import beside, not_measured, report
    from saelab.evaluation.results import load_encoders, load_evaluation
    from saelab.training.run import Run

    del stamps  # part of the cache's key only
    found, encoders = load_evaluation(Run(path)), load_encoders(Run(path))
    others = beside(name, found, encoders, FAITHFUL) if encoders else []
    return [*report({name: found}), *others, not_measured(found)]
