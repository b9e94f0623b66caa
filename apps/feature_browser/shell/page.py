"""What a page is: one file or folder of `feature_browser.pages`, and a line in its list."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from feature_browser.data.address import AbstractAddress


@dataclass(frozen=True)
class Page:
    """A page of the app, as its module's PAGE says.

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
