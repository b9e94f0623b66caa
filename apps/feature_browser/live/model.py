"""A run's SAE in its language model, loaded once per process: see `warm`, or at its first use.

Importing this module imports neither torch nor transformer_lens; `live_run` does, which takes
seconds, so pages call it only when the reader has asked for something that needs the model.
"""

import threading
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, WeakValueDictionary

import streamlit as st

from feature_browser.data.catalogue import RunCard, key_of
from feature_browser.data.reading import stamp
from feature_browser.live.warm import WARMTH, State, settle
from saelab.config import UsageError
from saelab.training.run import Run

if TYPE_CHECKING:
    from saelab.host.host import Host
    from saelab.lm.protocol import LanguageModel

MODELS_KEPT, RUNS_KEPT = 2, 8


_LOCKS: "WeakKeyDictionary[LanguageModel, threading.RLock]" = WeakKeyDictionary()
_LOADED: "WeakValueDictionary[str, LanguageModel]" = WeakValueDictionary()


def lock_of(lm: "LanguageModel") -> threading.RLock:
    """The lock to hold while the model runs: its hooks belong to one pass at a time.

    Runs of one model share the model and the lock, which the same thread may take again.
    """
    return _LOCKS.setdefault(lm, threading.RLock())


def live_run(card: RunCard) -> "Host":
    """The run's model and SAE, on the GPU if there is one; kept for all sessions.

    A page that has to wait says so.

    Raises:
        UsageError: the run was trained on arrays, its model is missing or has changed, the weights
            are missing or damaged, or the hook does not exist or does not fit.
    """
    if is_loaded(card):
        return load(card)
    with st.spinner(f"Loading the language model {card.model} …"):
        WARMTH.done.wait()
        return load(card)


def is_loaded(card: RunCard) -> bool:
    """Whether the run's language model is in memory."""
    return card.model in _LOADED


def told_of(card: RunCard) -> tuple[State, str]:
    """The state of the run's language model, and a sentence about it."""
    return WARMTH.said_of(card.model, loaded=is_loaded(card))


def load(card: RunCard) -> "Host":
    """As `live_run`, outside a page; raises as it does."""
    stamps = (stamp(card.weights_path), stamp(card.path / "config.json"))
    return _live(card, stamps, stamp(card.path / "provenance.json"))


@st.cache_resource(max_entries=RUNS_KEPT, show_spinner=False, hash_funcs={RunCard: key_of})
def _live(card: RunCard, stamps: tuple[int, int], recorded: int) -> "Host":
    del stamps, recorded  # part of the cache's key only
    from saelab.host.host import Host

    run = Run(card.path)
    run.check_finished()
    facts = run.model()
    lm = _model(str(facts["name"]), str(facts.get("dtype", "float32")))
    host = Host.of_run(run, lm)
    host.sae.eval().requires_grad_(requires_grad=False)
    with lock_of(lm):
        _check_fits(run, host)
    return host


@st.cache_resource(max_entries=MODELS_KEPT, show_spinner=False)
def _model(name: str, dtype: str) -> "LanguageModel":
    # It takes seconds to import, and no other page needs it.
    from saelab.lm.load import load_recorded_model

    lm = load_recorded_model({"name": name, "dtype": dtype})
    settle()
    _LOADED[name] = lm
    return lm


def _check_fits(run: Run, host: "Host") -> None:
    """Refuse an SAE whose widths differ from those of its sites."""
    sae = host.sae
    ends = (("reads", sae.d_in, host.reads), ("writes", sae.d_out, host.writes))
    for does, expected, site in ends:
        if (found := host.lm.width(site)) != expected:
            raise UsageError(
                f"The SAE of {run.path} {does} {expected} numbers a token, but {site} of "
                f"{host.lm.info.name} has {found}."
            )
