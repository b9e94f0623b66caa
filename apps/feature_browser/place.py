"""Where the reader is. The address is the app's only state, so every view can be sent around."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import parse_qsl, urlencode

VIEWS = {
    "runs": "Runs",
    "latent": "Latent",
    "latents": "All latents",
    "known": "Known features",
    "training": "Training",
}
CONTEXTS = ("8", "16", "full")
SORTS = ("latent", "f1", "density", "max", "mean", "negative")


@dataclass(frozen=True)
class Place:
    """What the address names. Values are as typed: nothing here is known to exist.

    Attributes:
        view: one of VIEWS.
        run: the run's name below the directory of runs.
        latent: a number, if the reader typed one.
        context: tokens on either side of a peak: one of CONTEXTS.
        sort, q, page: order, search text and page of the table of latents.
    """

    view: str = "latent"
    run: str | None = None
    latent: str | None = None
    context: str = "16"
    sort: str = "f1"
    q: str = ""
    page: str = "1"

    @classmethod
    def of(cls, params: Mapping[str, str]) -> "Place":
        """The place of a query string; an unknown view, context or order falls back."""
        known = {name: params[name] for name in cls.__dataclass_fields__ if name in params}
        place = cls(**known)
        return replace(
            place,
            view=place.view if place.view in VIEWS else "latent",
            context=place.context if place.context in CONTEXTS else "16",
            sort=place.sort if place.sort in SORTS else "f1",
        )

    @classmethod
    def at(cls, href: str) -> "Place":
        """The place that `href` (a query string) leads to."""
        return cls.of(dict(parse_qsl(href.removeprefix("?"))))

    def to(self, **changes: Any) -> "Place":  # noqa: ANN401 - any of the fields
        """The same place with some things changed."""
        texts = {name: None if value is None else str(value) for name, value in changes.items()}
        return replace(self, **texts)

    def params(self) -> dict[str, str]:
        """The query parameters; what has its default value is left out."""
        default = asdict(Place())
        return {name: value for name, value in asdict(self).items() if value != default[name]}

    @property
    def href(self) -> str:
        """The query string, for a link."""
        return "?" + urlencode(self.params())
