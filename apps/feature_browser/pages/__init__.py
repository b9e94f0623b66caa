"""The list of pages: a new one is a file or folder here with a PAGE, and a line below.

No page imports another: they refer to each other by `link`, and share code outside this folder.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module

from starlette.requests import Request
from starlette.responses import Response

from feature_browser.data.address import AbstractAddress
from feature_browser.data.catalogue import RunCard
from feature_browser.data.elsewhere import NOWHERE, Elsewhere

MODULES = [
    "welcome.view",
    "runs",
    "latent.view",
    "latents.view",
    "lists",
    "beside",
    "known",
    "attention.view",
    "circuit.view",
    "try_it.view",
    "tell_apart",
    "steering.view",
    "transport.view",
    "shared",
    "compare.view",
    "health.view",
    "sets",
    "scoreboard",
    "training",
]
"""The files that draw a page, in the order of the top bar."""


@dataclass(frozen=True)
class Page:
    """A page of the app, as the PAGE of its file says.

    Attributes:
        title: its name in the top bar.
        address: the record of its parameters; `view` is the page's name.
        draw: draws it, given the catalogue of all runs, the chosen run's card and the address.
        needs_features: whether it needs a run with collected features.
        needs_decoder: whether it needs latents with decoder rows.
        unfinished: whether it can draw a run in training, which has no card yet.
        concerns: whether the top bar names it for a run; its address works for every run.
        asks: the question that it answers.
        elsewhere: the command and the Python that show the same, given card and address.
        routes: handlers, by path, that answer without running the script.
    """

    title: str
    address: type[AbstractAddress]
    draw: Callable[..., None]
    needs_features: bool = False
    needs_decoder: bool = False
    unfinished: bool = False
    concerns: Callable[[RunCard], bool] = lambda _: True
    asks: str = ""
    elsewhere: Callable[..., Elsewhere] = lambda _, __: NOWHERE
    routes: Mapping[str, Callable[[Request], Response]] = field(default_factory=dict)


def pages() -> dict[str, Page]:
    """Every page by its name, the value of `?view=`."""
    found = [import_module(f"{__name__}.{module}").PAGE for module in MODULES]
    return {page.address.view: page for page in found}
