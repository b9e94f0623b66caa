"""Why heads looked where they did: the attention weights that carry most of the target.

Each is a card: how much of the target goes along it, and the pairs of query and key components that
make its score. The graph itself holds attention patterns fixed, so they are no edges of it.
"""

from functools import lru_cache
from typing import Annotated, Any

from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from feature_browser.draw.boxes import boxed
from feature_browser.draw.markup import EMPTY, Html, html, joined, running
from feature_browser.draw.numbers import flow_text, percent, real, signed
from feature_browser.pages.circuit.graphs import OpenGraph, node_id
from feature_browser.pages.circuit.scene import GraphScene
from saelab.analysis.circuits.nodes import Node, NodeKind
from saelab.console import visible

Place = Annotated[int, Field(ge=0)]
KINDS = {
    "latents": "two latents", "errors": "an SAE's error", "whole": "parts without an SAE",
    "constants": "constants",
}  # fmt: skip


@checked
class Component:
    """One side of a pair: a node at the head's end, or a constant."""

    kind: NodeKind
    name: str
    layer: int
    position: Place | None
    latent: Place | None
    label: str

    @property
    def node(self) -> Node:
        """As a node; its value is not known here."""
        return Node(self.kind, self.name, self.layer, self.position, self.latent)


@checked
class ScorePair:
    """A pair of components, and its part of the score."""

    query: Component
    key: Component
    part: FiniteFloat


@checked
class Look:
    """One attention weight, as `HeadLoading.values` writes it."""

    layer: Place
    head: Place
    dest: Place
    source: Place
    gives: FiniteFloat
    pattern: FiniteFloat
    score: FiniteFloat
    advantage: FiniteFloat
    pairs: list[ScorePair]
    by_kind: dict[str, FiniteFloat]


def looks_card(scene: GraphScene) -> Html:
    """The attention weights of the graph; empty if its file has none."""
    found = scene.found
    stored = found.graph.facts.get("attention")
    if not isinstance(stored, list) or not stored:
        return EMPTY
    looks = _read(stored)
    n = len(found.graph.tokens)
    places = [place for look in looks or () for place in (look.dest, look.source)]
    if looks is None or any(place >= n for place in places):
        text = "The file's list of attention weights is damaged; run `saelab circuit` again."
        return boxed("Why heads looked there", html('<p class="notice">{t}</p>', t=text))
    body = html('<div class="looks">{cards}</div>', cards=joined(_look(scene, x) for x in looks))
    hint = "the attention weights that carry most of the target, and the pairs behind their scores"
    return boxed("Why heads looked there", body, hint=hint)


def _read(stored: list[Any]) -> list[Look] | None:
    try:
        return _checked().validate_python(stored)
    except ValidationError:
        return None


@lru_cache(maxsize=1)
def _checked() -> TypeAdapter[list[Look]]:
    return TypeAdapter(list[Look])


def _look(scene: GraphScene, look: Look) -> Html:
    found, largest = scene.found, max((abs(pair.part) for pair in look.pairs), default=0.0) or 1.0
    return html(
        '<div class="look"><h3>Head {layer}.{head} <span class="at">{dest} → {source}</span></h3>'
        '<p class="sub">It gives the target <b class="{sign}-text">{gives}</b>. Attention '
        "{pattern}: the score {score} is {advantage} its mean over the tokens that the head sees."
        '</p><div class="amount head"><span>query, at {dest}</span><span>key, at {source}</span>'
        "<span>part of the score</span></div>{rows}{rest}</div>",
        layer=look.layer, head=look.head, dest=_token(found, look.dest),
        source=_token(found, look.source), sign="neg" if look.gives < 0 else "pos",
        gives=flow_text(look.gives), pattern=percent(look.pattern), score=real(look.score),
        advantage=f"{real(abs(look.advantage))} {'above' if look.advantage >= 0 else 'below'}",
        rows=joined(_pair(scene, pair, largest) for pair in look.pairs), rest=_rest(look),
    )  # fmt: skip


def _token(found: OpenGraph, place: int) -> Html:
    word = visible(found.graph.tokens[place]).strip() or "␣"
    return html('<code>{t}</code><span class="sub">@{p}</span>', t=running(word), p=place)


def _pair(scene: GraphScene, pair: ScorePair, largest: float) -> Html:
    ends = [_component(scene, side) for side in (pair.query, pair.key)]
    return html(
        '<div class="amount {sign}"><span>{query}</span><span>{key}</span>'
        '<i style="width:{w}%"></i><b>{part}</b></div>',
        sign="neg" if pair.part < 0 else "pos", w=f"{100 * abs(pair.part) / largest:.1f}",
        part=signed(pair.part), query=ends[0], key=ends[1],
    )  # fmt: skip


def _component(scene: GraphScene, side: Component) -> Html:
    """A component by its name, with a link to its node where the graph has one."""
    name = scene.names.title(side.node) or scene.names.what(side.node)
    number = scene.found.numbers.get(node_id(side.node))
    if number is None:
        return html('<span data-tip="{tip}">{name}</span>', tip=side.label, name=name)
    return html(
        '<a href="{href}" data-tip="{tip}">{name}</a>',
        href=scene.address.to(node=scene.found.ids[number]).href,
        tip=scene.names.tip(number), name=name,
    )  # fmt: skip


def _rest(look: Look) -> Html:
    """What the listed pairs leave out, and the score's sum by kind of pair."""
    others = look.score - sum(pair.part for pair in look.pairs)
    parts = [
        f"{signed(look.by_kind[kind])} with {words}" if kind != "latents" else
        f"{signed(look.by_kind[kind])} of {words}"
        for kind, words in KINDS.items()
        if look.by_kind.get(kind)
    ]  # fmt: skip
    return html(
        '<p class="sub">All other pairs {others}. The whole score: {parts}.</p>',
        others=signed(others), parts=", ".join(parts) or "no pairs",
    )  # fmt: skip
