"""A run's SAE in its language model, loaded once a process when a page first asks for it.

Importing this module imports neither torch nor transformer_lens; `live_run` does, which takes
seconds, so pages call it only when the reader has asked for something that needs the model.
"""

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import streamlit as st

from feature_browser.data.catalogue import RunCard
from feature_browser.data.reading import stamp
from saelab.config import UsageError
from saelab.training.run import Run

if TYPE_CHECKING:
    from saelab.analysis.circuits.dictionaries import Dictionary
    from saelab.lm.protocol import LanguageModel
    from saelab.sae.base import AbstractSAE

MODELS_KEPT, RUNS_KEPT = 2, 8


@dataclass(frozen=True)
class LiveRun:
    """A run's SAE and the model whose activations it was trained on.

    Hold `lock` while the model runs: its hooks belong to one pass at a time. Runs of one model
    share the model and the lock, which the same thread may take again.

    Attributes:
        site: the hook that the SAE reads.
        target_site: the hook that its decoder writes to; `site` unless it is a transcoder.
    """

    run: Run
    model: "LanguageModel"
    sae: "AbstractSAE"
    site: str
    target_site: str
    lock: threading.RLock

    def dictionary(self, name: str) -> "Dictionary":
        """The SAE as circuits take it, applied where it was trained."""
        from saelab.analysis.circuits.dictionaries import Dictionary

        return Dictionary(self.sae, self.site, self.target_site, name, self.run.domain)


def live_run(card: RunCard) -> LiveRun:
    """The run's model and SAE, on the GPU where there is one; kept for all sessions.

    Raises:
        UsageError: the run was trained on arrays, its model cannot be found or is another one by
            now, the weights are missing or damaged, or the hook does not exist or does not fit.
    """
    stamps = (stamp(card.weights_path), stamp(card.path / "config.json"))
    return _live(card, stamps, stamp(card.path / "provenance.json"))


@st.cache_resource(
    max_entries=RUNS_KEPT, show_spinner="Loading the language model …", hash_funcs={RunCard: repr}
)
def _live(card: RunCard, stamps: tuple[int, int], recorded: int) -> LiveRun:
    del stamps, recorded  # part of the cache's key only
    from saelab.host.host import check_model

    run = Run(card.path)
    run.check_finished()
    facts = run.model()
    loaded = _model(str(facts["name"]), str(facts.get("dtype", "float32")))
    check_model(loaded.model, run)
    sae = run.load_sae(str(loaded.model.device))
    sae.eval().requires_grad_(requires_grad=False)
    site = run.config.site
    target = str(run.options.get("target_site") or site)
    with loaded.lock:
        _check_fits(run, loaded.model, sae, (site, target))
    return LiveRun(run, loaded.model, sae, site, target, loaded.lock)


@dataclass(frozen=True)
class _Loaded:
    model: "LanguageModel"
    lock: threading.RLock


@st.cache_resource(max_entries=MODELS_KEPT, show_spinner="Loading the language model …")
def _model(name: str, dtype: str) -> _Loaded:
    # transformer_lens takes seconds to import, and no other page needs it.
    from saelab.lm.load import load_recorded_model

    return _Loaded(load_recorded_model({"name": name, "dtype": dtype}), threading.RLock())


def _check_fits(
    run: Run, model: "LanguageModel", sae: "AbstractSAE", sites: tuple[str, str]
) -> None:
    """Refuse an SAE that reads or writes vectors of another width than its site has."""
    width = {"reads": sae.d_in, "writes": sae.W_dec.shape[1]}
    for (does, expected), site in zip(width.items(), sites, strict=True):
        if (found := model.width(site)) != expected:
            raise UsageError(
                f"The SAE of {run.path} {does} {expected} numbers a token, but {site} of "
                f"{model.info.name} has {found}."
            )
