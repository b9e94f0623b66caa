"""What takes seconds, done once when the server starts, while nobody waits: imports and a model.

One thread does it, in a fixed order. Packages as large as torch and transformers import each other
in circles, so two threads that import them at once may see half of one.
"""

import gc
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Literal

from feature_browser.data.catalogue import OWN_ARRAYS, RunCard
from saelab.config import UsageError

FOR_PAGES = (
    "pandas",
    "plotly.graph_objects",
    "torch",
    "huggingface_hub",
    "saelab.training.config",
    "saelab.evaluation.report",
    "saelab.analysis.manifold",
)
"""Packages that pages import when they are drawn."""
SHARE = 4
"""A model whose weights would take more than one in so many bytes of free memory waits to be asked
for."""
_LOG = logging.getLogger(__name__)
State = Literal["starting", "not loaded", "loading", "ready", "failed"]


@dataclass
class Warmth:
    """How far the server's start is.

    Attributes:
        model: the language model that it loads; empty while it does not know it, or if none.
        problem: why the model could not be loaded.
        begun: when it began with the model (`time.monotonic`).
        imported: set when every page can be drawn.
        done: set when pages may load models of their own.
    """

    model: str = ""
    state: State = "not loaded"
    problem: str = ""
    begun: float = 0.0
    imported: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        # Where no thread was started, there is nothing to wait for.
        self.imported.set()
        self.done.set()

    def said_of(self, model: str, *, loaded: bool) -> tuple[State, str]:
        """The state of a language model, and a sentence about it."""
        if loaded:
            return "ready", f"{model} is loaded; pages that run it answer at once."
        if not self.imported.is_set():
            return "starting", "The server has just started."
        if model != self.model:
            return "not loaded", f"{model} is loaded when a page first runs it: that takes seconds."
        if self.state == "failed":
            return "failed", self.problem
        return "loading", f"{model} has been loading for {time.monotonic() - self.begun:.0f} s."


WARMTH = Warmth()
"""This server's."""


def begin(first: Callable[[], RunCard | None], load: Callable[[RunCard], object]) -> None:
    """Start the thread: imports, then `load` of the `first` run, if its model is at hand."""
    WARMTH.imported.clear()
    WARMTH.done.clear()
    threading.Thread(target=_warm, args=(WARMTH, first, load), daemon=True, name="warm").start()


def _warm(
    warmth: Warmth, first: Callable[[], RunCard | None], load: Callable[[RunCard], object]
) -> None:
    try:
        for name in FOR_PAGES:
            import_module(name)
        settle()
        warmth.imported.set()
        card = first()
        if card is not None and _fits(card):
            warmth.model, warmth.state, warmth.begun = card.model, "loading", time.monotonic()
            load(card)
            warmth.state = "ready"
    except UsageError as error:
        warmth.state, warmth.problem = "failed", str(error)
    except (OSError, RuntimeError, ImportError, MemoryError) as error:
        _LOG.exception("The model of the first run could not be loaded.")
        warmth.state, warmth.problem = "failed", (str(error).splitlines() or [""])[0][:200]
    finally:
        warmth.imported.set()
        warmth.done.set()


def settle() -> None:
    """Leave the objects that are there out of later garbage collections.

    Packages and models are a million objects that stay, and a collection, which looks at each,
    would take longer than drawing a page.
    """
    gc.unfreeze()  # What was loaded earlier may be garbage by now.
    gc.collect()
    gc.freeze()


def _fits(card: RunCard) -> bool:
    from saelab.lm.at_hand import weights_at_hand
    from saelab.resources import free_memory

    if card.model == OWN_ARRAYS:
        return False
    size = weights_at_hand(card.model)
    return size is not None and SHARE * size < free_memory()
