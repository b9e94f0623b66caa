"""Where the reader is. The address is the app's only state, so every view can be sent around."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import parse_qsl, urlencode

VIEWS = {
    "runs": "Runs",
    "latent": "Latent",
    "latents": "All latents",
    "known": "Known features",
    "steering": "Steering",
    "compare": "Compare",
    "health": "Health",
    "training": "Training",
}
CONTEXTS = ("8", "16", "full")
SHOWN = ("strongest", "strata", "silent")
SORTS = {
    "latents": ("latent", "f1", "density", "max", "mean", "negative"),
    "steering": ("latent", "output", "input", "probability", "rank"),
}
"""The orders of a view's table; F1 is the one where nothing else is asked for."""
KEPT = {
    "steering": ("output", "input", "both", "neither"),
    "compare": ("matched", "split", "merged", "one-way", "unique"),
    "health": ("dead", "dense", "duplicate"),
}
"""The parts of a view's table that can be shown alone."""
SIDES = ("this", "other")


@dataclass(frozen=True)
class Place:
    """What the address names. Values are as typed: nothing here is known to exist.

    Attributes:
        view: one of VIEWS.
        run: the run's name below the directory of runs.
        latent: a number, if the reader typed one.
        context: tokens on either side of a peak: one of CONTEXTS.
        show: which examples: one of SHOWN.
        sort, q, page: order, search text and page of the table of latents.
        keep: which part of a table, one of KEPT; all of it if empty.
        box: a rectangle of the scatter of scores: four numbers, see `numbers_of`.
        other: the run that this one is compared with.
        side: which of two compared runs' latents are listed: "this" or "other".
    """

    view: str = "latent"
    run: str | None = None
    latent: str | None = None
    context: str = "16"
    show: str = "strongest"
    sort: str = "f1"
    q: str = ""
    page: str = "1"
    keep: str = ""
    box: str = ""
    other: str | None = None
    side: str = "this"

    @classmethod
    def of(cls, params: Mapping[str, str]) -> "Place":
        """The place of a query string; an unknown view, context, choice or order falls back."""
        known = {name: params[name] for name in cls.__dataclass_fields__ if name in params}
        place = cls(**known)
        view = place.view if place.view in VIEWS else "latent"
        return replace(
            place,
            view=view,
            context=place.context if place.context in CONTEXTS else "16",
            show=place.show if place.show in SHOWN else "strongest",
            sort=place.sort if place.sort in SORTS.get(view, ()) else "f1",
            keep=place.keep if place.keep in KEPT.get(view, ()) else "",
            box=place.box if view == "steering" and numbers_of(place.box) else "",
            side=place.side if place.side in SIDES else "this",
        )

    @classmethod
    def at(cls, href: str) -> "Place":
        """The place that `href` (a query string) leads to."""
        return cls.of(dict(parse_qsl(href.removeprefix("?"))))

    def to(self, **changes: Any) -> "Place":  # noqa: ANN401 - any of the fields
        """The same place with some things changed."""
        texts = {name: None if value is None else str(value) for name, value in changes.items()}
        return replace(self, **texts)

    def visit(self, view: str) -> "Place":
        """Another view of the same run, without what was searched and filtered in this one."""
        return self.to(view=view, page=1, q="", keep="", box="")

    def params(self) -> dict[str, str]:
        """The query parameters; what has its default value is left out."""
        default = asdict(Place())
        return {name: value for name, value in asdict(self).items() if value != default[name]}

    @property
    def href(self) -> str:
        """The query string, for a link."""
        return "?" + urlencode(self.params())

    @property
    def page_number(self) -> int:
        """The page of a table, at least 1; 1 for what is no number."""
        # isdecimal also accepts other scripts' digits, and so does int.
        return max(1, int(self.page)) if self.page.isdecimal() and len(self.page) < 10 else 1


def numbers_of(box: str) -> tuple[float, float, float, float] | None:
    """Left, right, bottom and top of a box written "0,0.1,0.5,1"; None for anything else."""
    try:
        left, right, bottom, top = (float(part) for part in box.split(","))
    except ValueError:
        return None
    whole = all(math.isfinite(number) for number in (left, right, bottom, top))
    return (left, right, bottom, top) if whole else None
