"""A run on which prompts are tried, and the readings that were taken, which are kept."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import streamlit as st
from jaxtyping import Float
from numpy import ndarray

from feature_browser.data.catalogue import RunCard, latent_number
from feature_browser.data.labels import LatentNames
from feature_browser.data.reading import OpenRun, open_run, stamp
from feature_browser.live.chat import noted, prompted
from feature_browser.live.model import live_run
from feature_browser.live.prompt import PromptReading, read_prompt
from feature_browser.pages.try_it.address import TryAddress
from saelab.config import UsageError

if TYPE_CHECKING:
    from saelab.host.host import Host


@dataclass(frozen=True)
class Bench:
    """A run on which prompts are tried: live, with what was collected of its latents, if it was.

    Attributes:
        lit: the latent that shades the prompts.
        notices: sentences on what is missing or was not understood.
    """

    card: RunCard
    live: "Host"
    address: TryAddress
    run: OpenRun | None
    lit: int | None
    notices: tuple[str, ...] = ()

    @cached_property
    def names(self) -> LatentNames:
        """What the latents are called."""
        return LatentNames.of(self.card)

    @property
    def density(self) -> Float[ndarray, " d_sae"] | None:
        """Share of the corpus on which each latent fires."""
        return None if self.run is None else self.run.columns["density"]

    @property
    def maximum(self) -> Float[ndarray, " d_sae"] | None:
        """Each latent's largest |activation| on the corpus."""
        return None if self.run is None else self.run.columns["max"]


def open_bench(card: RunCard, address: TryAddress) -> Bench:
    """The run with its model; what is missing beside it is said in `notices`."""
    live = live_run(card)
    notices: list[str] = []
    run = None
    if not card.features_path.is_file():
        notices.append(
            f"Densities and maxima are not known; run saelab features {card.path.as_posix()}."
        )
    else:
        try:
            run = open_run(card)
        except UsageError as error:
            notices.append(str(error))
    if run is not None and len(run.features) != live.sae.d_sae:
        notices.append(
            f"{card.features_path} has {len(run.features)} latents and the SAE {live.sae.d_sae}; "
            "run saelab features again."
        )
        run = None
    lit = latent_number(address.latent, live.sae.d_sae)
    if address.latent and lit is None:
        notices.append(
            f"There is no latent {address.latent[:20]}; the SAE has 0 to {live.sae.d_sae - 1}."
        )
    prompts = (address.prompt, address.second)
    notices += [said for text in prompts if (said := noted(live, text, chat=bool(address.chat)))]
    return Bench(card, live, address, run, lit, tuple(notices))


def read(bench: Bench, text: str, target: str) -> PromptReading:
    """What fires on `text`; raises as `read_prompt` does, or if the model fails."""
    text = prompted(bench.live, text, chat=bool(bench.address.chat))
    return _read(bench.live, str(bench.card.path), stamp(bench.card.weights_path), text, target)


@st.cache_resource(max_entries=64, show_spinner="Reading the prompt …")
def _read(_live: "Host", path: str, stamp: int, text: str, target: str) -> PromptReading:
    del path, stamp  # part of the cache's key only
    try:
        return read_prompt(_live, text, target)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"The model failed on this prompt: {reason}.") from error
