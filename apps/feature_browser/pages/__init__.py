"""The one list of pages: a new one is its file or folder here, which has a PAGE, and a line below.

No page imports another: they lead to each other by `link`, and share what lies outside this folder.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module

from starlette.requests import Request
from starlette.responses import Response

from feature_browser.data.address import AbstractAddress

MODULES = [
    "runs",
    "latent.view",
    "latents.view",
    "known",
    "attention.view",
    "circuit.view",
    "try_it.view",
    "steering.view",
    "compare.view",
    "health.view",
    "training",
]
"""The files that draw a page, in the order of the bar at the top."""


@dataclass(frozen=True)
class Page:
    """A page of the app, as the PAGE of its file says.

    Attributes:
        title: what the bar at the top calls it.
        address: the record of its parameters, whose `view` is its name.
        draw: puts it on the screen: a function of the catalogue of all runs, the chosen run's card
            and the address.
        needs_features: whether it is drawn only of runs whose features were collected.
        routes: what the server answers without a pass of the script, by path.
    """

    title: str
    address: type[AbstractAddress]
    draw: Callable[..., None]
    needs_features: bool = False
    routes: Mapping[str, Callable[[Request], Response]] = field(default_factory=dict)


def pages() -> dict[str, Page]:
    """Every page by its name, which `?view=` says."""
    found = [import_module(f"{__name__}.{module}").PAGE for module in MODULES]
    return {page.address.view: page for page in found}
