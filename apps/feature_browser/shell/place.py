"""Where the reader is. The address is the app's only state, so every view can be sent around."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any
from urllib.parse import parse_qsl, urlencode

VIEWS = {
    "runs": "Runs",
    "latent": "Latent",
    "latents": "All latents",
    "known": "Known features",
    "attention": "Attention",
    "circuit": "Circuit",
    "try": "Try it",
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
    "try": ("value", "rarity", "attribution", "latent", "first", "second", "difference"),
}
"""The orders of a view's table; F1 is the one where nothing else is asked for."""
KEPT = {
    "latents": ("labelled", "bookmarked", "firing", "ordinary", "massive"),
    "steering": ("output", "input", "both", "neither"),
    "compare": ("matched", "split", "merged", "one-way", "unique"),
    "health": ("dead", "dense", "duplicate", "massive"),
}
"""The parts of a view's table that can be shown alone."""
BOXED = ("steering", "latents")
"""Views with a scatter."""
SIDES = ("this", "other")
PARTS = ("scores", "live")
"""The two halves of Steering: what was scored, and steering by hand."""


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
        box: a rectangle of a scatter: four numbers, see `numbers_of`.
        axes: the two figures of the scatter of all latents, with a comma between.
        other: the run that this one is compared with.
        side: which of two compared runs' latents are listed: "this" or "other".
        prompt, second: texts that the model reads live; the second is compared with the first.
        chat: "1" where they go through the model's chat template.
        pos: the position in the prompt that was picked.
        target: the token whose logit is asked about; the likeliest if empty.
        part: of Steering or Training, one of PARTS.
        experiment: what is steered live, as JSON, see `live_steering`.
        saved: the name of a saved experiment.
        graph, node, pins: a circuit's file, the node that was picked in it, and those pinned.
        nodes, edges: the circuit's filters: per cent of the influence that is shown.
        example: which stored text the Attention page reads, where no prompt was typed.
        source, head: the source token and the head that were picked there.
        trail: the latents that were followed to get there, see `attention_view`.
        beside: the run that takes the residual stream apart there.
        text: the text on which known features were looked for; the run's own if empty.
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
    axes: str = ""
    other: str | None = None
    side: str = "this"
    prompt: str = ""
    second: str = ""
    chat: str = ""
    pos: str = ""
    target: str = ""
    part: str = "scores"
    experiment: str = ""
    saved: str = ""
    graph: str = ""
    node: str = ""
    pins: str = ""
    nodes: str = "80"
    edges: str = "98"
    example: str = "0"
    source: str = ""
    head: str = ""
    trail: str = ""
    beside: str = ""
    text: str = ""

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
            box=place.box if view in BOXED and numbers_of(place.box) else "",
            side=place.side if place.side in SIDES else "this",
            part=place.part if place.part in PARTS else "scores",
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
        here = self.to(view=view, page=1, q="", keep="", box="", axes="")
        here = here.to(
            prompt="", second="", chat="", pos="", target="", part="scores", experiment="", saved=""
        )
        here = here.to(graph="", node="", pins="", nodes=80, edges=98, example=0)
        return here.to(source="", head="", trail="", beside="", text="")

    def params(self) -> dict[str, str]:
        """The query parameters; what has its default value is left out."""
        return {name: value for name, value in vars(self).items() if value != DEFAULTS[name]}

    @property
    def href(self) -> str:
        """The query string, for a link."""
        return "?" + urlencode(self.params())

    @property
    def page_number(self) -> int:
        """The page of a table, at least 1; 1 for what is no number."""
        # isdecimal also accepts other scripts' digits, and so does int.
        return max(1, int(self.page)) if self.page.isdecimal() and len(self.page) < 10 else 1


DEFAULTS = {field.name: field.default for field in fields(Place)}
"""What an address need not say."""


def numbers_of(box: str) -> tuple[float, float, float, float] | None:
    """Left, right, bottom and top of a box written "0,0.1,0.5,1"; None for anything else."""
    try:
        left, right, bottom, top = (float(part) for part in box.split(","))
    except ValueError:
        return None
    whole = all(math.isfinite(number) for number in (left, right, bottom, top))
    return (left, right, bottom, top) if whole else None
