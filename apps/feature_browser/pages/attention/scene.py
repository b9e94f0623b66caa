"""The Attention page's latent and what surrounds it, and the way that led to it."""

from dataclasses import dataclass, field

from feature_browser.data.address import link
from feature_browser.data.catalogue import RunCard
from feature_browser.data.labels import LatentNames
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.pages.attention.address import AttentionAddress
from feature_browser.pages.attention.source_pictures import word
from feature_browser.pages.attention.study import Study
from feature_browser.pages.attention.trail import TrailStep, trail_text
from saelab.analysis.circuits.nodes import Node


@dataclass(frozen=True)
class AttentionScene:
    """The page's latent, as the address has it.

    Attributes:
        cards: by name, the runs whose SAEs stand in the model: this one first.
        trail: the latents that were followed from the page's own.
    """

    card: RunCard
    cards: dict[str, RunCard]
    address: AttentionAddress
    trail: list[TrailStep]
    names: dict[str, LatentNames] = field(default_factory=dict, repr=False)

    def title(self, sae: str, latent: int) -> str:
        """What a latent is called; empty if nothing."""
        if sae not in self.cards:
            return ""
        if sae not in self.names:
            self.names[sae] = LatentNames.of(self.cards[sae])
        return self.names[sae].name(latent)

    def what(self, node: Node) -> str:
        """A node without its position, in words."""
        if node.kind == "latent" and node.latent is not None:
            return self.title(node.name, node.latent) or f"{node.name} {node.latent}"
        words = {"error": f"error of {node.name}", "bias": f"bias {node.name}"}
        return words.get(node.kind, node.name)

    def follow(self, step: TrailStep) -> str:
        """Where looking into a latent leads."""
        steps = trail_text([*self.trail, step])
        return self.address.to(trail=steps, source="", head="").href


def breadcrumb(scene: AttentionScene, study: Study) -> Html:
    """The latents that were followed, from the page's own to the one looked into."""
    start = scene.address.to(trail="", source="", head="")
    parts = [(start.href, f"latent {scene.address.latent}")]
    for number, step in enumerate(scene.trail):
        there = scene.address.to(trail=trail_text(scene.trail[: number + 1]), source="", head="")
        title = scene.title(step.sae, step.latent)
        name = f"{step.sae} {step.latent} @{step.position}" + (f" · {title}" if title else "")
        parts.append((there.href, name))
    last = len(parts) - 1
    links = joined(
        html(
            '{arrow}<a href="{href}"{on}>{name}</a>',
            arrow=html(' <span aria-hidden="true">←</span> ') if number else EMPTY,
            href=href, name=name,
            on=html(' aria-current="step"') if number == last else EMPTY,
        )
        for number, (href, name) in enumerate(parts)
    )  # fmt: skip
    at = html(
        ' <span class="sub">at “{t}”, position {p} of {n}{page}</span>',
        t=word(study.tokens[study.step.position]), p=study.step.position, n=len(study.tokens),
        page=_page_link(study.step) if scene.trail else EMPTY,
    )  # fmt: skip
    return html('<nav class="crumbs" aria-label="Latents followed">{l}{a}</nav>', l=links, a=at)


def _page_link(step: TrailStep) -> Html:
    there = link("latent", run=step.sae, latent=step.latent)
    return html(' · <a href="{h}">its page</a>', h=there)
